"""Accuracy of a network under a mask, and context managers that set the train or eval mode of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crbg.gates.selection import multiplied
from crbg.training.forward import logits, outputs_and_labels


@torch.no_grad()
def accuracy(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], multipliers: Mapping[str, Tensor] | None = None
) -> float:
    """Return the accuracy of the model in eval mode, in per cent.

    If the largest logit occurs several times, the first of these classes is the prediction, as in argmax.

    Args:
        model: A network without gates.
        batches: Pairs (inputs, labels).
        multipliers: Factors that multiply the weights, by name: a mask, or real-valued gates.
    """
    swapped = multiplied(model, multipliers) if multipliers else None
    hits = total = 0
    with eval_mode(model):
        for x, y in batches:
            out, labels = outputs_and_labels(model, x, y, swapped)
            hits += int((logits(out).argmax(1) == labels).sum())  # type: ignore[union-attr]
            total += labels.numel()
    return 100.0 * hits / total


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Yield the mode of each module (True for train mode), and restore all modes at the end of the block."""
    was = {m: m.training for m in model.modules()}
    try:
        yield was
    finally:
        for module, training in was.items():
            module.training = training


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Set the model to training mode inside the block, and restore all modes at its end.

    If the model itself is in training mode, submodules that are in eval mode (such as frozen batch norm) stay in it.
    """
    with keeping_modes(model):
        if not model.training:
            model.train()
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set all modules to eval mode inside the block, and restore all modes at its end."""
    with keeping_modes(model):
        model.eval()
        yield


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Disable dropout inside the block; batch norm modules keep their mode."""
    modules = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    for m in modules:
        m.eval()
    try:
        yield
    finally:
        for m in modules:
            m.train()
