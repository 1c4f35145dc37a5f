"""Learning rate schedules, and the optimisers for training weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from crbg.errors import CrbgError, suggest


def cosine(progress: float) -> float:
    """Return the multiplier of the learning rate: half a cosine wave, from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def plateau(progress: float) -> float:
    """Return the multiplier of the learning rate: 1 up to progress 0.6, then a straight line to 0 at progress 1."""
    return min(1.0, (1.0 - progress) / 0.4)


def optimiser(
    name: str, parameters: list[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Build the optimiser `sgd` (with momentum) or `adam` for a list of parameters.

    Raises:
        CrbgError: the name is unknown.
    """
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=weight_decay, fused=True)
    raise CrbgError(f"unknown optimiser {name!r}: {suggest(name, ('sgd', 'adam'))}")
