"""Gates with a budget: Concrete, Bernoulli, hard-concrete and budgeted Gaussian gates."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.gates.base import Gate
from crbg.gates.gaussian import Gaussian

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # hard-concrete: temperature and stretch (Louizos et al. 2018)
TAU = 2 / 3  # Concrete temperature of CTS


def logit(p: float) -> float:
    """log(p / (1 - p)), for 0 < p < 1."""
    if not 0 < p < 1:
        raise CrbgError(f"a probability to start from lies between 0 and 1, not at {p}")
    return math.log(p / (1 - p))


class Budgeted(Gate):
    """A gate with an expected openness p that a budget counts: a parameter `logit`, p = sigmoid(logit + shift)."""

    shift = 0.0

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.logit = nn.Parameter(initial.detach().clone())

    def noise(self) -> Tensor:
        """Draw one logistic variable for each gate."""
        u = torch.rand_like(self.logit).clamp(1e-7, 1 - 1e-7)
        return u.log() - (1 - u).log()

    @property
    def learnt(self) -> nn.Parameter:
        """The parameter that a controller steers."""
        return self.logit

    def expected(self) -> Tensor:
        """Return p."""
        return (self.logit.detach() + self.shift).sigmoid()

    def slope(self) -> Tensor:
        """Return dp / dlogit."""
        p = self.expected()
        return p * (1 - p)

    def scores(self) -> Tensor:
        return self.logit.detach()


class Clipped(Gaussian):
    """CRBG's gate under a budget: it counts p = P(z > 1/2) = Phi((mu - 1/2) / sigma), and starts at mu with p as asked."""

    @classmethod
    def at(cls, p: float, w: Tensor, noise: float) -> Clipped:
        """Make gates that are above 1/2 with probability p, for weights of the shape of w."""
        logit(p)  # refuses what is no probability
        return cls(
            torch.full_like(w, 0.5 + noise * float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))),
            noise,
            noise,
        )

    @property
    def learnt(self) -> nn.Parameter:
        """The parameter that a controller steers."""
        return self.mu

    def expected(self) -> Tensor:
        """Return p."""
        return cast(Tensor, torch.special.ndtr((self.mu.detach() - 0.5) / self.penalty_sigma))

    def slope(self) -> Tensor:
        """Return dp / dmu."""
        u = (self.mu.detach() - 0.5) / self.penalty_sigma
        return (-0.5 * u.square()).exp() / (math.sqrt(2 * math.pi) * self.penalty_sigma)


class Concrete(Budgeted):
    """CTS (Arora & Teuscher 2025): m = sigmoid(L / tau + a), L logistic; the budget counts sigmoid(a), the gate without noise."""

    def __init__(self, initial: Tensor, tau: float = TAU) -> None:
        super().__init__(initial)
        self.tau = tau

    def effective(self, w: Tensor) -> Tensor:
        return w * (self.logit + self.noise() / self.tau if self.sampling else self.logit).sigmoid()

    @classmethod
    def start(cls, p: float, tau: float = TAU) -> float:
        """Return the parameter at which the budget counts p."""
        return logit(p)

    def soft(self) -> Tensor:
        return self.logit.detach().sigmoid()

    def open_probability(self) -> Tensor:
        """P(m > 1/2) = sigmoid(tau a)."""
        return (self.tau * self.logit.detach()).sigmoid()


class Bernoulli(Concrete):
    """The same gate with a budget of probabilities: p = P(m > 1/2) = sigmoid(tau a)."""

    @classmethod
    def start(cls, p: float, tau: float = TAU) -> float:
        """Return the parameter at which the budget counts p."""
        return logit(p) / tau

    def expected(self) -> Tensor:
        return self.open_probability()

    def slope(self) -> Tensor:
        p = self.expected()
        return self.tau * p * (1 - p)


class HardConcrete(Budgeted):
    """L0 gates (Louizos et al. 2018) on frozen weights: z = clip(sigmoid((L + log alpha) / beta) (zeta - gamma) + gamma, 0, 1).

    The budget counts P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta)).
    """

    shift = -BETA * math.log(-GAMMA / ZETA)

    def effective(self, w: Tensor) -> Tensor:
        s = ((self.logit + self.noise()) / BETA).sigmoid() if self.sampling else self.logit.sigmoid()
        return w * (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft(self) -> Tensor:
        return (self.logit.detach().sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def open_probability(self) -> Tensor:
        return self.expected()
