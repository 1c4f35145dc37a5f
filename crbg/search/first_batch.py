"""What a search learns from its first batch: the scale of the logits, and the units that can be cut out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.measure.accuracy import keeping_modes
from crbg.training.device import fork_rng
from crbg.training.forward import OWN_LOSS, UserBatch, batch_size, logits, outputs_and_labels
from crbg.training.trees import map_tensors

if TYPE_CHECKING:
    from crbg.methods.contract import SearchTask

FEW = 2  # examples that show which units belong together


@contextmanager
def first_batch(model: nn.Module, task: SearchTask) -> Iterator[tuple[Any, Any]]:
    """Yield the first batch of the search; modes and random state are restored at the end of the block.

    A shuffling loader is seeded with the task's seed.
    """
    with keeping_modes(model), fork_rng(next(model.parameters()).device), torch.no_grad():
        torch.manual_seed(task.seed)
        yield next(iter(task.batches.epoch(0)))


def logit_spread(model: nn.Module, task: SearchTask) -> float:
    """Return the standard deviation of the centred logits over the first batch; 1 if the outputs contain no logits.

    Gates are noise-free and dropout is off. Batch norm uses the same statistics as in the search; its running
    statistics do not change.
    """
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    with first_batch(model, task) as batch:
        for m in model.modules():
            m.training = m.training and isinstance(m, torch.nn.modules.batchnorm._NormBase)
        outputs, labels = outputs_and_labels(model, *batch, buffers)
    out = logits(outputs)
    if out is None or labels is OWN_LOSS:
        return 1.0
    spread = float((out - out.mean(0)).std()) if out.numel() > 1 else 0.0
    return spread if spread > 0 else 1.0


def shared_units(model: nn.Module, task: SearchTask) -> dict[str, tuple[int, ...]]:
    """Return the units that each weight reads, for weights whose units can be cut out of the network.

    Raises:
        CrbgError: there is no such unit.
    """
    from crbg.gates import coupling  # imports parts of scipy, which only this granularity needs

    with first_batch(model, task) as (x, y):
        model.eval()
        count = batch_size(x, y)

        def few(t: Tensor) -> Tensor:
            return t[:FEW] if t.ndim and len(t) == count else t

        x = x if isinstance(x, UserBatch) else map_tensors(few, x)
        found = coupling.shared_units(coupling.trace(model, lambda: outputs_and_labels(model, x, y)[0]), model)
    if not found:
        raise CrbgError(
            "crbg.granularity: no unit of this network can be cut out, so `stream` has no gates; use `unit` instead"
        )
    return found
