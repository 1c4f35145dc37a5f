"""The state of a model before a search, and its restoration."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crbg.gates.layers import entries
from crbg.training.device import fork_rng
from crbg.training.interrupts import no_interrupt


@dataclass(frozen=True)
class _Slot:
    """One entry of a module's parameters or buffers, with its tensor and a copy of it. Tied entries share the copy."""

    name: str
    entries: dict[str, Any]
    key: str
    tensor: Tensor
    stride: tuple[int, ...]
    copy: Tensor


class Snapshot:
    """A copy of all tensors of a model, with their order, gradients and modes, taken when the object is created.

    The gradients of the parameters are set aside until `restore`, so that the search does not add to them.

    Attributes:
        tensors: Copies of all parameters and buffers, by name; a tied tensor has its first name only.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modes = [(m, m.training) for m in model.modules()]
        self.flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self.tensors: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        parts: list[dict[str, Any]] = [part for m in model.modules() for part in (m._parameters, m._buffers)]
        self.orders = [(part, tuple(part)) for part in parts]
        self.slots = []
        for name, part, key, tensor in entries(model):
            own = first.setdefault(id(tensor), name)
            if own == name:
                self.tensors[name] = tensor.detach().clone()
            self.slots.append(_Slot(own, part, key, tensor, tensor.stride(), self.tensors[own]))
        for p, *_ in self.flags:
            p.grad = None

    def now(self) -> dict[str, Tensor]:
        """Return the present values of `tensors`; the model must have no gates."""
        return {s.name: s.entries[s.key] for s in self.slots}

    @torch.no_grad()
    def restore(self, but: Collection[str] = ()) -> None:
        """Restore bytes, memory layout and order of all tensors, gradients, `requires_grad` and modes.

        Args:
            but: Names of tensors that keep their present values. The model must have no gates.
        """
        with no_interrupt():
            self._restore(but)

    def _restore(self, but: Collection[str]) -> None:
        for s in self.slots:
            now = s.entries[s.key]
            s.entries[s.key] = tensor = now if s.name in but else s.tensor  # a forward pass may replace a buffer
            if tensor.shape == s.copy.shape and tensor.stride() != s.stride:
                empty = torch.empty_strided(tensor.shape, s.stride, dtype=tensor.dtype, device=tensor.device)
                tensor.data = empty.copy_(tensor)
            if s.name not in but and not same_bytes(tensor, s.copy):
                tensor.copy_(s.copy)
        for part, order in self.orders:
            part.update({key: part.pop(key) for key in order if key in part})
        for p, needs_gradient, gradient in self.flags:
            p.requires_grad_(needs_gradient)
            p.grad = gradient
        for m, training in self.modes:
            m.training = training
            if isinstance(m, nn.RNNBase):
                m._update_flat_weights()


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Restore the model if the block raises; otherwise, keep the values of its tensors and restore only the rest.

    Args:
        model: A network without gates.
    """
    before = Snapshot(model)
    try:
        yield
    except BaseException:
        before.restore()
        raise
    before.restore(but=before.tensors)


@contextmanager
def unchanged(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Restore the model and the random generators at the end of the block.

    Args:
        model: A network without gates.
        seed: Seed of torch's generators inside the block; None keeps their state.
    """
    before = Snapshot(model)
    with fork_rng(next(model.parameters()).device):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            before.restore()


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape and dtype have the same bytes; NaN equals NaN."""
    return torch.equal(a.reshape(-1).view(torch.uint8), b.to(a.device).reshape(-1).view(torch.uint8))
