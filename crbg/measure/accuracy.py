"""Accuracy of a network under a mask, and context managers that set the train or eval mode of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crbg.gates.selection import multiplied


@torch.no_grad()
def accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], multipliers: Mapping[str, Tensor] | None = None
) -> float:
    """Return the accuracy of the model in eval mode, in per cent.

    If the largest logit occurs several times, the first of these classes is the prediction, as in argmax.

    Args:
        model: A network without gates.
        batches: Pairs (inputs, labels).
        multipliers: Factors on the weights by name: a mask, or real-valued gates.
    """
    swapped = multiplied(model, multipliers)
    hits = total = 0
    with keeping_modes(model):
        model.eval()
        for x, y in batches:
            hits += int((torch.func.functional_call(model, swapped, (x,)).argmax(1) == y).sum())
            total += len(y)
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
