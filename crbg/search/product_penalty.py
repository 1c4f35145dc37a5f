"""The penalty of product gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from crbg.gates.product import Product
from crbg.search.density_controller import Controlled
from crbg.search.penalties import PENALTIES
from crbg.training.hooks import Around, Row

PENALTY = PENALTIES["induce_sparse"]


class ProductPenalty(Around):
    """Penalise product gates: P(z > 0) = Phi(mu / sigma) Phi(nu / sigma), with the lambda of a controller.

    The gradient for mu is that of the controller, times Phi(nu / sigma) of the weight's input. The gradient for nu is
    the sum over the weights of the input, times `factor`.

    Args:
        inner: The controller of the density.
        factor: Factor on the penalty of the inputs; with 1, it is the derivative of P.
    """

    def __init__(self, inner: Controlled, factor: float) -> None:
        super().__init__(inner)
        self.controller, self.factor = inner, factor
        self.gates = cast(Sequence[Product], inner.gates)

    @torch.no_grad()
    def before_forward(self, progress: float) -> None:
        if self.controller.measures:
            self.controller.factors = [
                g.units(PENALTY.value(g.nu, g.penalty_sigma)).expand_as(g.mu).contiguous() for g in self.gates
            ]
        super().before_forward(progress)

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        super().after_backward(progress)
        for g in self.gates:
            open_weights = by_input(g, PENALTY.value(g.mu, g.penalty_sigma))
            slope = PENALTY.slope(g.nu, g.penalty_sigma) * open_weights
            cast(Tensor, g.nu.grad).add_(slope, alpha=self.factor * self.controller.pull)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        for g in self.gates:
            g.nu.clamp_(-2 * g.penalty_sigma, 1 + 2 * g.penalty_sigma)

    def log(self) -> Row:
        opened = sum(int((g.nu > 0.5).sum()) for g in self.gates) / sum(g.nu.numel() for g in self.gates)
        return {**super().log(), "inputs": opened}


def by_input(gate: Product, values: Tensor) -> Tensor:
    """Return the sum over the weights of each input, shape (inputs,), given one value per weight."""
    nu = gate.nu.detach().requires_grad_(True)
    with torch.enable_grad():  # the sum is the gradient of `units`, whatever the layout of the weight
        (out,) = torch.autograd.grad((gate.units(nu) * values).sum(), nu)
    return out
