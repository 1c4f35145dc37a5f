"""Run one search, for `find_ticket` and for recorded runs: call the method, then check and restore the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from crbg.errors import CrbgError, warn
from crbg.gates.attach import attached_gates, detach
from crbg.gates.layers import unwrap
from crbg.gates.selection import candidate_mask, choosing
from crbg.masks.select import keep_count
from crbg.measure.batch_norm import running
from crbg.measure.sparsity import without_weights
from crbg.packing import factors
from crbg.search.roles import CHANGED_ROLES, CODED_ROLES
from crbg.search.snapshot import Snapshot, same_bytes

if TYPE_CHECKING:
    from crbg.methods.contract import Method, SearchResult, SearchTask


def run_search(
    model: nn.Module, task: SearchTask, method: Method, options: Any, roles: Mapping[str, str] | None = None
) -> SearchResult:
    """Search for a ticket with `method`, check which tensors it changed, and restore the model.

    Afterwards, every tensor is byte-identical to its initial value, except the tensors that the result lists in
    `changed` and, if weights were trained, the running statistics that belong to them. The order of the parameters,
    their gradients and `requires_grad`, and the mode of each module (training or evaluation) are as before. If the
    search raises, all tensors are restored and all gates are removed.

    Args:
        model: The network; the search modifies it in place.
        task: Batches, density, epochs, seed and loss.
        method: A module of `crbg.methods`.
        options: The method's `Options`.
        roles: Role of each tensor by name. Only tensors with the role `recalibrated` or one of `CHANGED_ROLES` may
            change. By default, parameters are `frozen` and buffers are `recalibrated`.

    Raises:
        CrbgError: the model has gates, the task's selection does not fit the model, or the search changed a tensor with
            any other role.
    """
    model = unwrap(model)
    if attached_gates(model):
        raise CrbgError("the model already has gates; call detach(model) or bake(model) first")
    if roles is None:
        roles = dict.fromkeys((n for n, _ in model.named_buffers()), "recalibrated")
    chosen = choosing(model, task.selection) if task.selection else contextlib.nullcontext()
    with chosen, _eager(model):
        if task.selection:
            _check_density(model, task.density)
        before = Snapshot(model)
        try:
            found = method.find(model, task, options)
            detach(model)  # if the method left gates attached, the tensors would have other names
            now, stored = before.now(), model.state_dict()
            guard_roles({n: t for n, t in before.tensors.items() if n in stored}, now, {**roles, **found.changed})
        except BaseException:
            detach(model)
            before.restore()
            raise
        if found.running is None:
            found.running = running(model)
        # Without training, the running statistics are those of the noisy network of the search.
        trained = "trained" in found.changed.values()
        if found.changed and CODED_ROLES.issuperset(found.changed.values()):
            found.factors = factors.between(before.tensors, now, found.mask)
        before.restore(but=set(before.tensors) if trained else set(found.changed))
    if task.selection and (empty := without_weights(model, found.mask)):
        warn(f"the ticket has {'; '.join(empty)}; a larger density may help")
    return found


def _check_density(model: nn.Module, density: float | None) -> None:
    count = sum(int(t.sum()) for t in candidate_mask(model).values())
    if density is not None and keep_count(density, count) < 1:
        raise CrbgError(
            f"density {density:g} keeps none of the {count} weights; the smallest density that keeps one weight is "
            f"{1 / count:.2g}"
        )


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Suspend `model.compile()` inside the block, because attaching gates changes the modules."""
    compiled = {m: call for m in model.modules() if (call := getattr(m, "_compiled_call_impl", None)) is not None}
    try:
        for m in compiled:
            m._compiled_call_impl = None
        yield
    finally:
        for m, call in compiled.items():
            m._compiled_call_impl = call


def guard_roles(before: Mapping[str, Tensor], after: Mapping[str, Tensor], roles: Mapping[str, str]) -> None:
    """Check, byte by byte, that only tensors with the role `recalibrated` or one of `CHANGED_ROLES` have changed.

    Raises:
        CrbgError: a tensor with another role changed; the message names it and its role.
    """
    for name, old in before.items():
        role = roles.get(name, "frozen")
        if role not in ("recalibrated", *CHANGED_ROLES) and not same_bytes(old, after[name]):
            raise CrbgError(
                f"the search changed {name!r}, which has the role {role!r}; a strong ticket must leave it unchanged"
            )
