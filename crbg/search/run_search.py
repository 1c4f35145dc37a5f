"""One search, as the library and the runner do it: the method searches, the model is checked and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.gates.attach import attached_gates, detach
from crbg.measure.accuracy import keeping_modes
from crbg.measure.batch_norm import running

if TYPE_CHECKING:
    from crbg.methods.contract import Method, SearchResult, SearchTask


def run_search(
    model: nn.Module, task: SearchTask, method: Method, options: Any, roles: Mapping[str, str] | None = None
) -> SearchResult:
    """Search a ticket with `method`, check which tensors it changed, and restore the model.

    Afterwards every tensor has its initial bytes, except those that the result names as changed, and, where weights
    were trained, the running statistics that belong to them. Each module has its mode (training or not), and each
    parameter its `requires_grad`. If the search raises, all tensors are restored and gates are removed.

    Args:
        model: The network. The search works on it in place.
        task: Batches, density, epochs, seed and loss.
        method: A module of `crbg.methods`.
        options: The method's `Options`.
        roles: Role of each tensor by name. Only tensors whose role is `trained`, `redrawn` or `recalibrated` may
            change. By default parameters are `frozen` and buffers `recalibrated`.

    Raises:
        CrbgError: the model carries gates, or the search changed a tensor whose role does not allow it.
    """
    if attached_gates(model):
        raise CrbgError("the model carries gates already; detach() or bake() it first")
    initial = {n: t.detach().clone() for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    needs_gradient = {n: p.requires_grad for n, p in model.named_parameters()}
    if roles is None:
        roles = dict.fromkeys((n for n, _ in model.named_buffers()), "recalibrated")
    try:
        with keeping_modes(model):
            found = method.find(model, task, options)
        detach(model)  # a method that leaves gates on would hide the tensors under other names
        guard_roles(initial, model.state_dict(), {**roles, **found.changed})
    except BaseException:
        detach(model).load_state_dict(initial, strict=False)
        raise
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(needs_gradient[name])
    if found.running is None:
        found.running = running(model)
    if "trained" not in found.changed.values():
        # The running statistics of the search belong to its noisy network.
        model.load_state_dict({n: t for n, t in initial.items() if n not in found.changed}, strict=False)
    return found


def guard_roles(before: Mapping[str, Tensor], after: Mapping[str, Tensor], roles: Mapping[str, str]) -> None:
    """Check that only tensors with the role trained, redrawn or recalibrated changed, byte by byte.

    Raises:
        CrbgError: another tensor changed; the message names it and its role.
    """
    for name, old in before.items():
        role = roles.get(name, "frozen")
        if role not in ("trained", "redrawn", "recalibrated") and not _same_bytes(old, after[name]):
            raise CrbgError(f"the search changed {name!r}, whose role is {role!r}: its ticket is not a strong one")


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu().reshape(-1).view(torch.uint8), b.cpu().reshape(-1).view(torch.uint8))
