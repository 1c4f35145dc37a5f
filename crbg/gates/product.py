"""Product gates: each weight has a gate of its own and shares one with the other weights that read the same unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crbg.errors import CrbgError
from crbg.gates.base import Columns, straight_through, trainable
from crbg.gates.gaussian import Gaussian


class Product(Gaussian):
    """A gate without noise with values z_ij = clip(mu_ij, 0, 1) clip(nu_j, 0, 1), where j is the input of the weight.

    A weight is kept if both mu and nu are above 1/2. This is an extension of the thesis, which names hierarchical gates
    as future work.

    Args:
        mu: Initial means of the weights' gates, of the weight's shape.
        nu: Initial means of the inputs' gates, shape (inputs,).
        **options: As for `Gaussian`, except `noise`, `learn_sigma` and `leak`.
    """

    def __init__(self, mu: Tensor, nu: Tensor, **options: Any) -> None:
        super().__init__(mu, noise=0.0, **options)
        self.nu = trainable(nu)
        self.columns = Columns()  # the layout of the weight

    def units(self, values: Tensor) -> Tensor:
        """Return the value of each weight's input, given one value per input; it broadcasts against the weight."""
        return self.columns.expand(values, self.mu)

    def effective(self, w: Tensor) -> Tensor:
        if self.hard:
            nu = straight_through(self.nu, torch.ones_like(self.nu), self.nu.detach() > 0.5)
            return straight_through(self.mu, w, self.mu.detach() > 0.5) * self.units(nu)
        return w * self.mu.clamp(0, 1) * self.units(self.nu.clamp(0, 1))

    def restrict(self, candidates: Tensor) -> None:
        raise CrbgError("product gates need weights that are not zero; leave out weights with zeros with `where`")

    def opened(self) -> Tensor:
        return (self.mu.detach() > 0.5) & self.units(self.nu.detach() > 0.5)

    def scores(self) -> Tensor:
        """Return the smaller of mu and nu, of the weight's shape."""
        return torch.minimum(self.mu.detach(), self.units(self.nu.detach()))

    def soft(self) -> Tensor:
        return self.mu.detach().clamp(0, 1) * self.units(self.nu.detach().clamp(0, 1))
