"""Contexts of weights: 32 classes of equal size by the initial value, which the coder of masks uses for prediction.

Searches keep large weights more often than small ones. Whoever reads a ticket has the initial weights, so the mask can
be coded given their values. Contexts are compared as integers and are therefore the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from crbg import rng
from crbg.packing.model import CONTEXTS

Contexts = Callable[[str, int], NDArray[np.uint8]]  # of the name of a tensor and its number of weights

_PIECE = 1 << 20  # integers to draw at a time


def from_seed(seed: int) -> Contexts:
    """Return the contexts of weights that are drawn from a seed: the top five bits of each weight's random integer."""

    def contexts(name: str, count: int) -> NDArray[np.uint8]:
        stream, out = rng.stream(seed, "init", name), np.empty(count, np.uint8)
        for start in range(0, count, _PIECE):
            piece = out[start : start + _PIECE]
            piece[:] = stream.random_raw(len(piece)) >> np.uint64(59)
        return out

    return contexts


def from_weights(weights: Mapping[str, NDArray[np.float32]]) -> Contexts:
    """Return the contexts of stored weights: floor(32 rank / n) for the rank of each weight among the n of its tensor.

    Weights are ranked by the integer i of their float32 bits, or by 2^31 - 1 - i (as a signed integer) if the sign bit
    is set, which orders them by value. Equal weights are ranked by position.
    """

    def contexts(name: str, count: int) -> NDArray[np.uint8]:
        i = weights[name].reshape(-1).view(np.int32)
        order = np.argsort(np.where(i < 0, i ^ np.int32(0x7FFFFFFF), i), kind="stable")
        out = np.empty(count, np.uint8)
        out[order] = np.arange(count) * CONTEXTS // count
        return out

    return contexts


def none(name: str, count: int) -> NDArray[np.uint8]:
    """Return one context for all weights, for readers who do not have the weights."""
    return np.zeros(count, np.uint8)
