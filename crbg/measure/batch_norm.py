"""Re-estimation of batch norm's running statistics for a sparse network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crbg.gates.selection import multiplied
from crbg.measure.accuracy import training_mode, without_dropout
from crbg.models.initial_weights import RUNNING
from crbg.training.forward import outputs_and_labels
from crbg.training.interrupts import no_interrupt
from crbg.training.model_state import copied_tensors, put_tensors, tensors_of


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a network has running statistics, which have to be re-estimated for each mask."""
    return any(isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats for m in model.modules())


@contextmanager
def recalibrated(
    model: nn.Module, inputs: Iterable[Any], multipliers: Mapping[str, Tensor] | None = None
) -> Iterator[nn.Module]:
    """Inside the block, replace the running statistics by averages over `inputs` under a mask; restore them afterwards.

    Batch norm that is in eval mode while the model is in training mode is frozen, and keeps its statistics.

    Args:
        model: A network without gates.
        inputs: Batches of inputs in a fixed order; all batches have equal weight.
        multipliers: Factors on the weights by name: a mask, or real-valued gates.
    """
    tracking = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    norms = [m for m in tracking if m.training or not model.training]
    swapped = multiplied(model, multipliers) if multipliers else None  # before a change, because it may raise
    before = copied_tensors(model)
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # in torch, None means a cumulative average
    try:
        with training_mode(model), torch.no_grad(), without_dropout(model):
            for x in inputs:
                outputs_and_labels(model, x, None, swapped)
        yield model
    finally:
        with no_interrupt():
            put_tensors(model, before)
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum


def running_statistics(
    model: nn.Module, inputs: Iterable[Any], multipliers: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the running statistics that `recalibrated` estimates, by name; the model does not change."""
    with recalibrated(model, inputs, multipliers):
        return running(model)


def running(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's running statistics, by name."""
    return {n: t.detach().clone() for n, t in tensors_of(model).items() if n.rsplit(".", 1)[-1] in RUNNING}
