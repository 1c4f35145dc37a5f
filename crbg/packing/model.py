"""Adaptive prediction of a mask, in integers only, so that every machine computes the same probabilities.

A weight matrix is visited along its generalised diagonals, in blocks. Before a block, the model predicts the
probability that each of its weights is kept, from four log-odds: that of the tensor, and those of the weight's row,
column and context among the weights visited so far. After the block, the counts and the mixing weights are updated.
Along a diagonal, neither a row nor a column is visited twice before the others, so both counts grow evenly.

Logarithms have base 2 and are stored as integers in units of 1 / 256, probabilities in units of 1 / 65536.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CONTEXTS = 32
BLOCK = 1024  # largest number of weights in a block
ONE = 1 << 16  # the probability 1
PRIOR = 16  # pseudocount: each count starts with this number of weights, at the density of the tensor
LIMIT = 15 * 256  # largest absolute log-odds
RATE = 20  # a step of the mixing weights is multiplied by 2^(RATE - 24) = 1/16
FLOOR = 1 << 33  # smallest denominator of such a step
STEEPEST = 4 * ONE  # largest absolute mixing weight

# floor(256 log2(1 + i / 1024)): the floor of a logarithm of base 2 is a length in bits.
_LOG = np.array([((1024 + i) ** 256).bit_length() - 2561 for i in range(1024)], np.int64)


def _root(power: int) -> int:
    """Return the largest integer whose 256th power is at most 2^power, for power in [15 * 256, 16 * 256)."""
    low, high = 1 << 15, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**256 <= 1 << power else (low, middle)
    return low


_EXP = np.array([_root(15 * 256 + i) for i in range(256)], np.int64)  # floor(2^15 2^(i / 256))


def log2(x: Ints) -> Ints:
    """Return the binary logarithm times 256, rounded down after reducing x to its leading 11 bits, for 0 < x < 2^53."""
    fraction, exponent = np.frexp(x.astype(np.float64))  # exact
    return (exponent.astype(np.int64) - 1) * 256 + _LOG[(fraction * 2048).astype(np.int64) - 1024]


def probability(log_odds: Ints) -> Ints:
    """Return the probability in units of 1 / 65536, at least 1 and at most 65535, for log-odds in units of 1 / 256."""
    z = np.clip(log_odds, -LIMIT, LIMIT - 1)
    odds = _EXP[z & 255] << ((z >> 8) + 16)  # in units of 2^-31
    return np.asarray(np.clip((odds << 16) // (odds + (1 << 31)), 1, ONE - 1), np.int64)


class Counts:
    """Numbers of kept and pruned weights by row, column or context, and the log-odds that they imply."""

    def __init__(self, size: int, density: int) -> None:
        self.kept, self.pruned = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.prior = (PRIOR * density, PRIOR * (ONE - density))
        self.base = int(self._log_odds(np.zeros(1, np.int32), np.zeros(1, np.int32))[0])

    def add(self, index: Ints, bits: NDArray[np.bool_]) -> None:
        """Count the weights of a block, given their positions in the arrays."""
        np.add.at(self.kept, index[bits], np.int32(1))
        np.add.at(self.pruned, index[~bits], np.int32(1))

    def relative(self, index: Ints) -> Ints:
        """Return the log-odds at some positions minus those of the tensor."""
        return self._log_odds(self.kept[index], self.pruned[index]) - self.base

    def smoothed(self, index: Ints) -> Ints:
        """Return `relative` for counts that are added to their neighbours with the weights 1, 2, 1."""
        return (self._log_odds(*map(_smooth, (self.kept, self.pruned))) - self.base)[index]

    def _log_odds(self, kept: NDArray[np.int32], pruned: NDArray[np.int32]) -> Ints:
        a, b = (count.astype(np.int64) << 16 for count in (kept, pruned))
        return log2(a + self.prior[0]) - log2(b + self.prior[1])


def _smooth(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    padded = np.concatenate([counts[:1], counts, counts[-1:]])
    return np.asarray(padded[:-2] + 2 * counts + padded[2:], np.int32)


def walk(
    shape: tuple[int, int],
    contexts: NDArray[np.uint8],
    kept: int,
    code: Callable[[Ints, Ints], NDArray[np.bool_]],
) -> None:
    """Visit all weights of a matrix in blocks, predict each block, and learn from its bits.

    For R rows and C >= R columns, diagonal t = 0, ..., R - 1 consists of the weights ((j + t) mod R, j) for j = 0, ...,
    C - 1. It is divided into blocks of `BLOCK` weights; the last block can be shorter. If R > C, the matrix is
    transposed first.

    Args:
        shape: Number of rows and columns.
        contexts: Context of each weight, in row-major order.
        kept: Number of kept weights, neither 0 nor all.
        code: Function of the probabilities of a block and of its positions in row-major order; returns its bits.
    """
    (rows, columns), (down, right) = shape, (shape[1], 1)
    if rows > columns:
        (rows, columns), (down, right) = (columns, rows), (right, down)
    density = min(max((kept << 16) // (shape[0] * shape[1]), 1), ONE - 1)
    counts = [Counts(size, density) for size in (rows, columns, CONTEXTS)]
    weights = [ONE, ONE, ONE]
    for diagonal in range(rows):
        for start in range(0, columns, BLOCK):
            column = np.arange(start, min(start + BLOCK, columns))
            row = (column + diagonal) % rows
            position = row * down + column * right
            index = (row, column, contexts[position].astype(np.int64))
            inputs = [counts[0].relative(row), counts[1].relative(column), counts[2].smoothed(index[2])]
            mixed = sum((w * x for w, x in zip(weights, inputs, strict=True)), np.zeros_like(column))
            p = probability(counts[0].base + (mixed >> 16))
            bits = code(p, position)
            for count, i in zip(counts, index, strict=True):
                count.add(i, bits)
            weights = _learn(weights, inputs, p, bits)


def _learn(weights: list[int], inputs: list[Ints], p: Ints, bits: NDArray[np.bool_]) -> list[int]:
    """Take a gradient step on the code length of a block, divided by the trace of its Gauss-Newton matrix."""
    error, variance = (bits.astype(np.int64) << 16) - p, (p * (ONE - p)) >> 16
    trace = sum(int((x * x * variance).sum()) for x in inputs)
    steps = [(int((x * error).sum()) << RATE) // max(trace, FLOOR) for x in inputs]
    return [min(max(w + s, -STEEPEST), STEEPEST) for w, s in zip(weights, steps, strict=True)]
