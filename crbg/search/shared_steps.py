"""Additive hierarchical gates: steps that all gates of a row or of a column of a weight tensor share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from crbg.gates.gaussian import Gaussian
from crbg.training.hooks import Around, SearchHook

AXES = (0, 1)  # outputs and inputs of a linear or convolutional layer


class SharedSteps(Around):
    """Give each row and each column of a weight tensor one parameter that is added to mu of all its gates.

    mu = nu + row + column is searched by gradient descent in all three. Since their sum is all that counts, only mu is
    stored: each step of a row or column is added to mu, and its parameter is set to 0 again. Its gradient is the sum of
    the gradients of its gates, penalties included. This is an extension of the thesis, which names hierarchical gates
    as future work.

    Args:
        inner: The hook that controls the gates; it runs as without this one.
        gates: Gates with one mu per weight.
    """

    def __init__(self, inner: SearchHook, gates: Sequence[Gaussian]) -> None:
        super().__init__(inner)
        self.parts = [
            (g, axis, nn.Parameter(torch.zeros(g.mu.shape[axis], device=g.mu.device, dtype=g.mu.dtype)))
            for g in gates
            if g.mu.ndim > 1  # a vector has no rows that share gates
            for axis in AXES
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of all rows and columns; they are zero before each step of the optimiser."""
        return (step for _, _, step in self.parts)

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        super().after_backward(progress)
        for gate, axis, step in self.parts:
            if gate.mu.grad is not None:
                step.grad = gate.mu.grad.sum([i for i in range(gate.mu.ndim) if i != axis])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        for gate, axis, step in self.parts:
            gate.mu.add_(step.reshape([-1 if i == axis else 1 for i in range(gate.mu.ndim)]))
            step.zero_()
        super().after_step(progress)
