"""Search hooks that change pruned weights now and then: IteRand and weight recycling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crbg import rng
from crbg.errors import CrbgError
from crbg.gates.scores import TopK
from crbg.training.hooks import SearchHook


class Periodic(SearchHook):
    """Call `act` after every `period` steps.

    Raises:
        CrbgError: the period or the rate is out of range.
    """

    def __init__(self, period: int, rate: float) -> None:
        if period < 1 or not 0 <= rate <= 1:
            raise CrbgError(f"period {period} must be at least 1, and rate {rate} in [0, 1]")
        self.period, self.rate, self.steps = period, rate, 0

    def act(self) -> None:
        """Change weights."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        self.steps += 1
        if self.steps % self.period == 0:
            self.act()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


class Redraw(Periodic):
    """IteRand (Chijiwa et al. 2021): every `period` steps, redraw each pruned weight with probability `rate`.

    New values are sampled from the tensor's initial values, so they follow the initial distribution, whatever it is.
    The samples depend only on the seed, the weight's name and the step, so a resumed search draws the same values.

    Raises:
        CrbgError: the period or the rate is out of range.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], gates: Sequence[TopK], seed: int, period: int, rate: float
    ) -> None:
        super().__init__(period, rate)
        self.weights, self.gates, self.seed = weights, list(gates), seed
        # Weights without a gate are exactly zero; they are never redrawn.
        pairs = zip(weights.items(), gates, strict=True)
        self.initial = {n: w.detach()[g.candidates if g.candidates is not None else ...] for (n, w), g in pairs}
        self.initial = {n: w.clone().flatten() for n, w in self.initial.items()}

    @torch.no_grad()
    def act(self) -> None:
        for (name, w), g in zip(self.weights.items(), self.gates, strict=True):
            when = (self.seed, "redraw", name, str(self.steps))
            chance, pick = (torch.from_numpy(rng.uniform(w.numel(), *when, what)) for what in ("chance", "pick"))
            initial = self.initial[name]
            fresh = initial[(pick * initial.numel()).long().to(w.device)].reshape(w.shape)
            again = ~g.widen(g.kept(), True) & (chance < self.rate).to(w.device).reshape(w.shape)
            w.copy_(torch.where(again, fresh, w))


class Recycle(Periodic):
    """Iterative weight recycling (Gorbett & Whitley 2023): every `period` steps, reuse the best weights of a layer.

    In each layer, the `rate` share of the weights with the smallest scores get the values of the `rate` share with the
    largest scores, in order of the scores. The scores do not change.
    """

    def __init__(self, weights: Mapping[str, Tensor], gates: Sequence[TopK], period: int, rate: float) -> None:
        super().__init__(period, rate)
        self.pairs = list(zip(weights.values(), gates, strict=True))

    @torch.no_grad()
    def act(self) -> None:
        for w, g in self.pairs:
            values = w[g.candidates if g.candidates is not None else ...].flatten()
            order = g.scores().flatten().argsort(stable=True)
            count = round(self.rate * len(order))
            values[order[:count]] = values[order[len(order) - count :]]
            w.copy_(values.reshape(w.shape) if g.candidates is None else g.widen(values, 0.0))
