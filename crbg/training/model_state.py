"""Copies of a model's tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state_dict, which can also contain other objects (`get_extra_state`)."""
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def copied_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return detached copies of `tensors_of`."""
    return {n: t.detach().clone() for n, t in tensors_of(model).items()}


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, as `tensors_of` returns them, into the model; other objects of its state_dict stay as they are."""
    model.load_state_dict(dict(tensors), strict=False)
