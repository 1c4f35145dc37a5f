"""Accuracy and other metrics of a network under a mask, and context managers for the train or eval mode of modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crbg.data.metrics import ACCURACY, BITS, MSE, Metric
from crbg.gates.selection import multiplied
from crbg.training.forward import logits, outputs_and_labels


def accuracy(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], multipliers: Mapping[str, Tensor] | None = None
) -> float:
    """Return the accuracy of the model in eval mode, in per cent; see `quality`."""
    return quality(model, batches, multipliers)


@torch.no_grad()
def quality(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    multipliers: Mapping[str, Tensor] | None = None,
    metric: Metric = ACCURACY,
    temperature: float = 1.0,
) -> float:
    """Return a metric of the model in eval mode, as a mean over all labels.

    - `ACCURACY`: share of correct predictions, in per cent. If the largest logit occurs several times, the first of
      these classes is the prediction, as in argmax.
    - `BITS`: cross entropy in bits.
    - `MSE`: mean squared error.

    Args:
        model: A network without gates.
        batches: Pairs (inputs, labels); the classes of logits are on axis 1.
        multipliers: Factors that multiply the weights, by name: a mask, or real-valued gates.
        metric: What to measure.
        temperature: The logits are divided by it. It matters for `BITS` only.
    """
    swapped = multiplied(model, multipliers) if multipliers else None
    total, count, of_batch = 0.0, 0, _TOTALS[metric.key]
    with eval_mode(model):
        for x, y in batches:
            out, labels = outputs_and_labels(model, x, y, swapped)
            found = cast(Tensor, logits(out))
            total += of_batch(found if temperature == 1.0 else found / temperature, labels)
            count += labels.numel()
    return _FACTORS.get(metric.key, 1.0) * total / count


@torch.no_grad()
def outputs(
    model: nn.Module, batch: tuple[Any, Any], multipliers: Mapping[str, Tensor] | None = None
) -> tuple[Any, Any]:
    """Return the outputs of the model in eval mode for one batch, and the labels; the arguments are as in `quality`."""
    with eval_mode(model):
        return outputs_and_labels(model, *batch, multiplied(model, multipliers) if multipliers else None)


# The sum of a metric over the labels of a batch.
_TOTALS: dict[str, Callable[[Tensor, Tensor], float]] = {
    ACCURACY.key: lambda out, labels: int((out.argmax(1) == labels).sum()),
    BITS.key: lambda out, labels: float(F.cross_entropy(out, labels, reduction="none").double().sum()),
    MSE.key: lambda out, labels: float((out - labels).double().square().sum()),
}
_FACTORS = {ACCURACY.key: 100.0, BITS.key: 1 / math.log(2)}


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
