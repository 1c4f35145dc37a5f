"""Gates for searches with a budget: Concrete, Bernoulli, hard-concrete and clipped Gaussian.

Each gate counts towards the budget with a value p in (0, 1): a probability that it is open, or its value without noise.
The budget limits the sum of p over all gates, and controllers such as `crbg.search.gradbalance.GradBalance` enforce it.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.gates.base import Gate, trainable
from crbg.gates.gaussian import Gaussian

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # hard-concrete: temperature and stretch (Louizos et al. 2018)
TAU = 2 / 3  # temperature of the Concrete gates of Concrete Ticket Search (CTS)


def logit(p: float) -> float:
    """Return log(p / (1 - p)).

    Raises:
        CrbgError: p is not in (0, 1).
    """
    if not 0 < p < 1:
        raise CrbgError(f"the initial probability of a gate must be above 0 and below 1, not {p}")
    return math.log(p / (1 - p))


class Budgeted(Gate):
    """A gate with a parameter `logit`, which counts towards the budget with p = sigmoid(logit + shift)."""

    shift = 0.0

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.logit = trainable(initial)

    def noise(self) -> Tensor:
        """Draw one standard logistic sample, log u - log(1 - u), for each gate."""
        u = torch.rand_like(self.logit).clamp(1e-7, 1 - 1e-7)
        return u.log() - (1 - u).log()

    @property
    def learnt(self) -> nn.Parameter:
        """The trained parameter. Controllers add to its gradient."""
        return self.logit

    def expected(self) -> Tensor:
        """Return the value p with which each gate counts towards the budget."""
        return (self.logit.detach() + self.shift).sigmoid()

    def slope(self) -> Tensor:
        """Return dp / dlogit for each gate."""
        p = self.expected()
        return p * (1 - p)

    def scores(self) -> Tensor:
        return self.logit.detach()


class Clipped(Gaussian):
    """CRBG's clipped Gaussian gate. It counts towards the budget with p = P(z > 1/2) = Phi((mu - 1/2) / sigma)."""

    @classmethod
    def at(cls, p: float, w: Tensor, noise: float) -> Clipped:
        """Build gates of w's shape that start at P(z > 1/2) = p.

        Raises:
            CrbgError: p is not in (0, 1).
        """
        logit(p)  # checks p
        quantile = float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
        return cls(torch.full_like(w, 0.5 + noise * quantile), noise, noise)

    @property
    def learnt(self) -> nn.Parameter:
        """The trained parameter. Controllers add to its gradient."""
        return self.mu

    def expected(self) -> Tensor:
        """Return the value p with which each gate counts towards the budget."""
        return cast(Tensor, torch.special.ndtr((self.mu.detach() - 0.5) / self.penalty_sigma))

    def slope(self) -> Tensor:
        """Return dp / dmu for each gate."""
        u = (self.mu.detach() - 0.5) / self.penalty_sigma
        return (-0.5 * u.square()).exp() / (math.sqrt(2 * math.pi) * self.penalty_sigma)


class Concrete(Budgeted):
    """The Concrete gate of CTS (Arora & Teuscher 2025): m = sigmoid(L / tau + a), with L standard logistic.

    `logit` is a, the paper's logit divided by tau. The gate counts towards the budget with p = sigmoid(a), its value
    without noise, as in the authors' public code.
    """

    def __init__(self, initial: Tensor, tau: float = TAU) -> None:
        super().__init__(initial)
        self.tau = tau

    def effective(self, w: Tensor) -> Tensor:
        return w * (self.logit + self.noise() / self.tau if self.sampling else self.logit).sigmoid()

    @classmethod
    def start(cls, p: float, tau: float = TAU) -> float:
        """Return the value of a for which the gate counts towards the budget with p."""
        return logit(p)

    def soft(self) -> Tensor:
        return self.logit.detach().sigmoid()

    def open_probability(self) -> Tensor:
        """Return P(m > 1/2) = sigmoid(tau a)."""
        return (self.tau * self.logit.detach()).sigmoid()


class Bernoulli(Concrete):
    """The Concrete gate, counted towards the budget with its keep probability: p = P(m > 1/2) = sigmoid(tau a)."""

    @classmethod
    def start(cls, p: float, tau: float = TAU) -> float:
        """Return the value of a for which the gate counts towards the budget with p."""
        return logit(p) / tau

    def expected(self) -> Tensor:
        return self.open_probability()

    def slope(self) -> Tensor:
        p = self.expected()
        return self.tau * p * (1 - p)


class HardConcrete(Budgeted):
    """The hard-concrete (L0) gate of Louizos et al. 2018, on frozen weights.

    z = clip(sigmoid((L + log alpha) / beta) (zeta - gamma) + gamma, 0, 1), with L standard logistic; `logit` is
    log alpha. The gate counts towards the budget with p = P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta)).
    """

    shift = -BETA * math.log(-GAMMA / ZETA)

    def effective(self, w: Tensor) -> Tensor:
        s = ((self.logit + self.noise()) / BETA).sigmoid() if self.sampling else self.logit.sigmoid()
        return w * (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft(self) -> Tensor:
        return (self.logit.detach().sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def open_probability(self) -> Tensor:
        return self.expected()
