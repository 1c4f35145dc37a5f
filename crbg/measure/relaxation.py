"""How far the relaxed gates of a running search are from the binary ticket that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crbg.gates.attach import attached_gates, bypass, weights
from crbg.masks.select import select, total_count
from crbg.measure.accuracy import eval_mode
from crbg.training.device import fork_rng
from crbg.training.forward import outputs_and_labels


@torch.no_grad()
def relaxation(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Callable[[Any, Tensor], Tensor], density: float
) -> dict[str, float]:
    """Measure the loss with the gates as the search uses them, and with the weights of the largest scores only.

    The random generators and all weights are afterwards as before.

    Args:
        model: A network with gates, in eval mode during the measurement.
        batches: Pairs (inputs, labels).
        loss: Function of (outputs, labels) that returns the mean over the batch.
        density: Fraction of the weights that the ticket keeps.

    Returns:
        `relaxed` and `binary`, means over the batches; empty if the network has no gates.
    """
    gates = attached_gates(model)
    if not gates:
        return {}
    pairs = list(batches)

    def mean() -> float:
        return sum(float(loss(*outputs_and_labels(model, x, y))) for x, y in pairs) / len(pairs)

    device = next(model.parameters()).device
    with eval_mode(model), fork_rng(device):
        relaxed = mean()
        scores = {n: g.widen(g.scores(), -math.inf) for n, g in gates.items()}
        mask = select(scores, total_count(scores, density))
        raw = {n: w for n, w in weights(model).items() if n in mask}
        before = {n: w.clone() for n, w in raw.items()}
        try:
            with bypass(model):
                for n, w in raw.items():
                    w.mul_(mask[n].to(w.device))
                return {"relaxed": relaxed, "binary": mean()}
        finally:
            for n, w in raw.items():
                w.copy_(before[n])
