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

from crbg.gates.layers import fan_in
from crbg.gates.selection import raw_weight, weights


@torch.no_grad()
def variance_gains(model: nn.Module, density: float) -> dict[str, float]:
    """Return for each gated weight the gain with which a sparse layer keeps the variance of its inputs.

    A linear layer keeps the variance if n * E[w^2] = 1, where n is the fan-in (LeCun et al. 1998, section 4.6). A mask
    that keeps each weight with probability d leaves d * E[w^2], so the gain is

        g = 1 / sqrt(d * n * mean(w^2)).

    For torch's own initial weights, U[-1 / sqrt(n), 1 / sqrt(n)], this is sqrt(3 / d). He's factor 2 for ReLU is left
    out: a search keeps weights that add up, so the signal of a ticket is larger than that of a random mask.

    Args:
        model: A network without gates.
        density: Fraction d of weights that are kept.

    Returns:
        The gain by name; 1 for a tensor of zeros.
    """
    gains = {}
    for name, w in weights(model).items():
        power = float(w.detach().float().square().mean()) * fan_in(model, name, w)
        gains[name] = 1 / math.sqrt(density * power) if power > 0 else 1.0
    return gains


@contextmanager
def scaled(model: nn.Module, gains: Mapping[str, float]) -> Iterator[nn.Module]:
    """Multiply the weights by their gains inside the block; afterwards, their bytes are as before."""
    before = {n: raw_weight(model, n).detach().clone() for n in gains}
    try:
        with torch.no_grad():
            for name, gain in gains.items():
                raw_weight(model, name).mul_(gain)
        yield model
    finally:
        with torch.no_grad():
            for name, w in before.items():
                raw_weight(model, name).copy_(w)
