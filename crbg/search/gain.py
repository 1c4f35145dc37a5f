"""Gains on frozen weights that keep the variance of the signal from layer to layer in a sparse network.

Frozen weights cannot grow. A mask with density d multiplies the variance of a layer's output by about d, and torch's
initial weights shrink it by a further factor of 6 in a layer with ReLU. After a few layers, the signal is smaller than
the biases, and the outputs no longer depend on the inputs. One gain per weight tensor prevents this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from crbg.gates.attach import weights


@torch.no_grad()
def variance_gains(model: nn.Module, density: float) -> dict[str, float]:
    """Return for each weight tensor that can be gated the gain with which a layer of ReLUs keeps the signal's variance.

    He et al. 2015 (equation 10): with ReLU, the variance is kept if n * E[w^2] = 2, where n is the fan-in. A mask that
    keeps each weight with probability d leaves d * E[w^2], so the gain is

        g = sqrt(2 / (d * n * mean(w^2))).

    For torch's own initial weights, U[-1 / sqrt(n), 1 / sqrt(n)], this is sqrt(6 / d); for He's, it is sqrt(1 / d).

    Args:
        model: A network without gates.
        density: Fraction d of weights that are kept.

    Returns:
        The gain by name; 1 for a tensor of zeros.
    """
    gains = {}
    for name, w in weights(model).items():
        power = float(w.detach().double().square().mean()) * math.prod(w.shape[1:])
        gains[name] = math.sqrt(2 / (density * power)) if power > 0 else 1.0
    return gains


@contextmanager
def scaled(model: nn.Module, gains: Mapping[str, float]) -> Iterator[nn.Module]:
    """Multiply the weights by their gains inside the block; afterwards, their bytes are as before."""
    before = {n: w.detach().clone() for n, w in weights(model).items() if n in gains}
    try:
        with torch.no_grad():
            for name, w in weights(model).items():
                w.mul_(gains.get(name, 1.0))
        yield model
    finally:
        with torch.no_grad():
            for name, w in weights(model).items():
                if name in before:
                    w.copy_(before[name])
