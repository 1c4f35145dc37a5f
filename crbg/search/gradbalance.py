"""Search hooks of methods other than CRBG: GradBalance, Lagrange multiplier, global threshold, Gem-Miner's pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from crbg.errors import CrbgError
from crbg.gates.concrete import Budgeted, Clipped
from crbg.gates.dtypes import fraction
from crbg.gates.scores import Rounded, TopK
from crbg.masks.select import Threshold
from crbg.training.hooks import Row, SearchHook


class GradBalance(SearchHook):
    """The density controller of Concrete Ticket Search (CTS, Arora & Teuscher 2025).

    It adds lambda * g_S to the task gradient g_R. With p the expected value of each gate,
    S = sum(p) / (slack * keep) - 1 is the relative excess over the budget, and g_S = dS/da is its gradient with respect
    to the gate parameters a.
    lambda is an exponential moving average of lambda* and starts at the first lambda*, with lambda* = |g_R| / |g_S|
    (Euclidean norms over all gates) if S > 0, else 0. The paper's constant factor on S cancels.

    Args:
        gates: Gates that count towards the budget.
        keep: Number of weights to keep.
        slack: The budget is `slack * keep`.
        memory: Decay of the moving average, i.e. the weight of its previous value.

    Raises:
        CrbgError: `gates` is empty.
    """

    def __init__(
        self, gates: Sequence[Budgeted | Clipped], keep: int, slack: float = 1.1, memory: float = 0.99
    ) -> None:
        if not gates:
            raise CrbgError("the network has no gates with a budget; attach Concrete or clipped Gaussian gates first")
        self.gates, self.target, self.memory = list(gates), slack * keep, memory
        self.weight: float | None = None

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        slopes = [g.slope() / self.target for g in self.gates]
        norms = [torch.linalg.vector_norm(t) for t in (*self.grads(), *slopes)]
        opened = [g.expected().sum() for g in self.gates]
        # One transfer for all values, because each transfer from a GPU waits for all work queued before it.
        values, n = torch.stack([*norms, *opened]).tolist(), len(slopes)
        task, budget = math.hypot(*values[:n]), math.hypot(*values[n : 2 * n])
        over = sum(values[2 * n :]) / self.target - 1.0
        star = task / max(budget, 1e-30) if over > 0 else 0.0
        self.weight = star if self.weight is None else self.memory * self.weight + (1 - self.memory) * star
        for grad, slope in zip(self.grads(), slopes, strict=True):
            grad.add_(slope, alpha=self.weight)

    def over(self) -> float:
        """Return S, the relative excess of the expected number of open gates over the budget."""
        return float(sum(torch.stack([g.expected().sum() for g in self.gates]).tolist())) / self.target - 1.0

    def grads(self) -> list[Tensor]:
        """Return the gradients of all gates after a backward pass."""
        return [cast(Tensor, g.learnt.grad) for g in self.gates]

    def log(self) -> Row:
        every = torch.cat([g.soft().flatten() for g in self.gates])
        p = sum(float(g.expected().sum()) for g in self.gates) / len(every)
        undecided = fraction((every > 0.01) & (every < 0.99))
        return {
            "density": fraction(every > 0.5),
            "expected": p,
            "undecided": undecided,
            "lambda": self.weight or 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]


class Lagrange(GradBalance):
    """The Lagrange multiplier baseline of the CTS paper: loss + lambda * 100 S, gradient ascent on lambda from 0."""

    def __init__(self, gates: Sequence[Budgeted | Clipped], keep: int, slack: float, rate: float) -> None:
        super().__init__(gates, keep, slack)
        self.rate, self.weight = rate, 0.0

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        weight = self.weight or 0.0
        for g, grad in zip(self.gates, self.grads(), strict=True):
            grad.add_(g.slope(), alpha=100.0 * weight / self.target)
        self.weight = weight + self.rate * 100.0 * self.over()


class GlobalThreshold(SearchHook):
    """Use one threshold for the scores of all edge-popup gates.

    The density falls linearly from 1 to `density` during the first fraction `reach` of the search. If it started at its
    final value, a layer with small initial scores would lose all its weights in the first step and never receive a
    gradient. Diffenderfer & Kailkhura (2021) anneal the density for the same reason.
    """

    def __init__(self, gates: Sequence[TopK], density: float, reach: float) -> None:
        self.gates, self.density, self.reach, self.threshold = list(gates), density, reach, Threshold()

    @torch.no_grad()
    def before_forward(self, progress: float) -> None:
        done = min(1.0, progress / self.reach) if self.reach else 1.0
        every = torch.cat([g.scores().flatten() for g in self.gates])
        keep = max(1, round((1 + (self.density - 1) * done) * every.numel()))
        level = self.threshold(every, keep)
        for g in self.gates:
            g.level = level


class GemMinerPruning(SearchHook):
    """Gem-Miner's schedule (Sreenivasan et al. 2022): prune the lowest scores permanently, `periods` times.

    Pruning steps are equally spaced. Each prunes the same fraction of the remaining weights, globally, so that exactly
    `keep` weights remain after the last step. Pruning is idempotent: a resumed search can repeat it, so no state is
    saved. The loss includes `decay` / 2 * |p|^2.
    """

    def __init__(self, gates: Sequence[Rounded], keep: int, periods: int, decay: float) -> None:
        self.gates, self.periods, self.decay = list(gates), periods, decay
        self.total = sum(g.p.numel() for g in gates)
        self.left = [max(keep, round(self.total * (keep / self.total) ** ((i + 1) / periods))) for i in range(periods)]
        self.done = 0

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        for g in self.gates:
            cast(Tensor, g.p.grad).add_(g.p, alpha=self.decay)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        for g in self.gates:
            g.p.clamp_(0, 1)

    @torch.no_grad()
    def before_forward(self, progress: float) -> None:
        # The last pruning step is one period before the end, so that the search still trains the remaining gates.
        while self.done < self.periods and progress >= (self.done + 1) / (self.periods + 1):
            every = torch.cat([g.scores().flatten() for g in self.gates])
            keep = self.left[self.done]
            order = every.argsort(descending=True, stable=True)
            alive = torch.zeros_like(every, dtype=torch.bool)
            alive[order[:keep]] = True
            for g, part in zip(self.gates, torch.split(alive, [g.p.numel() for g in self.gates]), strict=True):
                g.alive &= part.reshape(g.alive.shape)
            self.done += 1

    def log(self) -> Row:
        kept = sum(int((g.alive & (g.p > 0.5)).sum()) for g in self.gates)
        return {"density": kept / self.total, "alive": sum(int(g.alive.sum()) for g in self.gates) / self.total}
