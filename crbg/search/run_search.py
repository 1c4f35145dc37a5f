"""Run one search, for `find_ticket` and for recorded runs: call the method, then check and restore the model."""

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
    """Search for a ticket with `method`, check which tensors it changed, and restore the model.

    Afterwards, every tensor is byte-identical to its initial value, except the tensors that the result lists in
    `changed` and, if weights were trained, the running statistics that belong to them. Each module is back in its
    original mode (training or evaluation), and each parameter has its original `requires_grad`. If the search raises,
    all tensors are restored and all gates are removed.

    Args:
        model: The network; the search modifies it in place.
        task: Batches, density, epochs, seed and loss.
        method: A module of `crbg.methods`.
        options: The method's `Options`.
        roles: Role of each tensor by name. Only tensors with the role `trained`, `redrawn` or `recalibrated` may
            change. By default, parameters are `frozen` and buffers are `recalibrated`.

    Raises:
        CrbgError: the model has gates, or the search changed a tensor with any other role.
    """
    if attached_gates(model):
        raise CrbgError("the model already has gates; call detach(model) or bake(model) first")
    initial = {n: t.detach().clone() for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    needs_gradient = {n: p.requires_grad for n, p in model.named_parameters()}
    if roles is None:
        roles = dict.fromkeys((n for n, _ in model.named_buffers()), "recalibrated")
    try:
        with keeping_modes(model):
            found = method.find(model, task, options)
        detach(model)  # if the method left gates attached, the tensors would have other names
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
        # The running statistics were computed on the noisy network of the search.
        model.load_state_dict({n: t for n, t in initial.items() if n not in found.changed}, strict=False)
    return found


def guard_roles(before: Mapping[str, Tensor], after: Mapping[str, Tensor], roles: Mapping[str, str]) -> None:
    """Check, byte by byte, that only tensors with the role `trained`, `redrawn` or `recalibrated` have changed.

    Raises:
        CrbgError: another tensor changed; the message names it and its role.
    """
    for name, old in before.items():
        role = roles.get(name, "frozen")
        if role not in ("trained", "redrawn", "recalibrated") and not _same_bytes(old, after[name]):
            raise CrbgError(
                f"the search changed {name!r}, which has the role {role!r}; a strong ticket must leave it unchanged"
            )


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu().reshape(-1).view(torch.uint8), b.cpu().reshape(-1).view(torch.uint8))
