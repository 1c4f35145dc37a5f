"""Search hooks that add penalty gradients to Gaussian gates, with a fixed lambda or with a density controller.

Terms such as gate, reading and natural density are defined in docs/vocabulary.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.gates.attach import attached_gates
from crbg.gates.dtypes import fraction
from crbg.gates.gaussian import Gaussian
from crbg.gates.kernels import layout
from crbg.masks.mask import Mask
from crbg.search.budget import Budget
from crbg.search.penalties import Penalty, penalty, slope_into
from crbg.training import distributed
from crbg.training.clock import Collapse
from crbg.training.hooks import Row, SearchHook

ADJUSTMENTS = 20  # how often a search adjusts its target density to a budget
BINS = (-1.0, 2.0, 60)  # histograms of mu: lowest edge, highest edge, number of bins; outliers are in the end bins


class Penalised(SearchHook):
    """The thesis's objective with a fixed lambda: add lambda times the mean penalty over all gates to the loss.

    Args:
        model: A network with Gaussian gates.
        name: Name of the penalty, as for `crbg.search.penalties.penalty`.
        weight: The factor lambda on the mean penalty.
        anneal_to: Final noise level. The noise level changes linearly over the first 80 % of the search; None keeps it
            constant.

    Raises:
        CrbgError: the model has no Gaussian gates, or the penalty is unknown.
    """

    def __init__(self, model: nn.Module, name: str, weight: float, anneal_to: float | None = None) -> None:
        found = {n: g for n, g in attached_gates(model).items() if isinstance(g, Gaussian)}
        if not found:
            raise CrbgError("the network has no Gaussian gates to penalise; attach them first")
        self.by_name = found
        self.first: dict[Gaussian, str] = {}  # the first weight of each gate; a gate of several weights counts once
        for n, g in found.items():
            self.first.setdefault(g, n)
        self.gates = list(self.first)
        self.total = sum(g.mu.numel() for g in self.gates)
        self.penalty, self.weight = penalty(name), weight
        self.anneal_to, self.noise0 = anneal_to, [g.noise for g in self.gates]
        self.factors: list[torch.Tensor] = []  # a factor on the penalty of each gate; empty: the same for all
        self.middle: list[int] = []  # the histogram of mu halfway through the search

    def before_forward(self, progress: float) -> None:
        if progress >= 0.5 and not self.middle:
            self.middle = self.picture()
        if self.anneal_to is not None:
            done = min(1.0, progress / 0.8)
            for gate, noise in zip(self.gates, self.noise0, strict=True):
                gate.noise = noise + (self.anneal_to - noise) * done

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        for i, g in enumerate(self.gates):
            slope = self.penalty.slope(g.mu, g.penalty_sigma)
            slope = slope * self.factors[i] if self.factors else slope
            _gradient(g).add_(slope, alpha=self.weight / self.total)

    def density(self) -> float:
        """Return the fraction of gates with mu > 1/2: the density of the mask 1[mu > 1/2] (the reading `half`)."""
        # One transfer for all tensors, because each transfer from a GPU waits for all work queued before it.
        return int(torch.stack([torch.count_nonzero(g.opened()) for g in self.gates]).sum()) / self.total

    def undecided(self) -> float:
        """Return the fraction of gates with 0 < mu < 1."""
        inside = [((g.mu.detach() > 0) & (g.mu.detach() < 1)).sum() for g in self.gates]
        return int(torch.stack(inside).sum()) / self.total

    def picture(self) -> list[int]:
        """Return the histogram of mu over all gates, in the bins of `BINS`."""
        low, high, count = BINS
        every = torch.cat([g.mu.detach().flatten() for g in self.gates]).clamp(low, high)
        return [int(c) for c in torch.histc(every, count, low, high)]

    def log(self) -> Row:
        density = self.density()
        if density == 0.0:
            raise Collapse("no gate is above 1/2: the penalty has closed the whole network")
        layers = {f"density {n}": fraction(g.opened()) for n, g in self.by_name.items()}
        return {"density": density, "undecided": self.undecided(), "lambda": self.weight, **layers}

    def state_dict(self) -> dict[str, Any]:
        return {"middle": self.middle}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, list(value) if isinstance(value, list) else value)


class Centred(Penalised):
    """STG's objective as published (Yamada et al. 2020): a fixed lambda, and weight decay on m = mu - 1/2."""

    def __init__(self, model: nn.Module, name: str, weight: float, decay: float) -> None:
        super().__init__(model, name, weight)
        self.decay = decay

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        super().after_backward(progress)
        for g in self.gates:
            _gradient(g).add_(g.mu - 0.5, alpha=self.decay)


@dataclass(frozen=True)
class Plan:
    """Schedule and gains of the density controller; times are fractions of the whole search.

    Attributes:
        reach: Time at which the path reaches the target. The path is the density that the controller aims at; it starts
            at the initial density and changes geometrically.
        decide: Time at which the decision penalty starts. From then on its weight rises linearly, so that the gates are
            binary at the end.
        firmness: Final norm of the decision penalty's gradient, relative to the norm of the task gradient.
        integral: Integral gain of the controller, per measurement.
        proportional: Proportional gain of the controller.
        tolerance: The decision penalty is suspended while |log(density / path)| exceeds this value.
        every: Number of steps between two measurements of the density.
        polish: Length of the final phase, as a fraction of the search, with hard gates 1[mu > 1/2] and straight-through
            gradients. In this phase, only the density is controlled, so the search optimises the ticket itself.
    """

    reach: float = 0.4
    decide: float = 0.5
    firmness: float = 1.0
    integral: float = 0.05
    proportional: float = 1.0
    tolerance: float = 0.1
    every: int = 5
    polish: float = 0.0


class Planned(Penalised):
    """A search with a target density, which follows a planned path from the initial density to the target.

    mu is clamped to [-2 sigma, 1 + 2 sigma]. Outside this interval, the gradient of a penalty such as Phi(mu / sigma)
    vanishes and could not move a gate back.

    Args:
        model: A network with Gaussian gates.
        name: Name of the density penalty.
        density: Target density, the fraction of gates with mu > 1/2.
        plan: Schedule and gains.
        anneal_to: Final noise level, as for `Penalised`.
        budget: A limit on the cost of the mask. The target density is then adjusted to it twenty times.

    Raises:
        CrbgError: the model has no Gaussian gates.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        density: float,
        plan: Plan | None = None,
        anneal_to: float | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(model, name, 0.0, anneal_to)
        self.target, self.plan, self.budget, self.adjusted = density, plan or Plan(), budget, 0
        self.start, self.steps = max(self.density(), density), 0

    def path(self, progress: float) -> float:
        """Return the planned density when the fraction `progress` of the search is done."""
        done = min(1.0, progress / self.plan.reach)
        return float(self.start ** (1 - done) * self.target**done)

    def before_forward(self, progress: float) -> None:
        """Switch to hard gates in the last part of the search, if the plan has such a part."""
        super().before_forward(progress)
        if self.budget and int(ADJUSTMENTS * progress) > self.adjusted:
            self.adjusted = int(ADJUSTMENTS * progress)
            self.target = self._affordable(self.budget)
        if self.plan.polish:
            for g in self.gates:
                g.hard = progress >= 1 - self.plan.polish

    def _affordable(self, budget: Budget) -> float:
        """Return the density that meets the budget if the kept weights stay distributed over the layers as now."""
        mask = Mask({n: g.opened() for n, g in self.by_name.items()})
        if not mask.kept:
            return self.target
        if self.adjusted in (ADJUSTMENTS // 2, ADJUSTMENTS - 1):  # this may take a minute for a large network
            budget.measure(mask)
        counts = {n: (float(c["kept"]), c["total"]) for n, c in mask.counts().items()}
        return min(1.0, max(1 / mask.total, mask.density * budget.scale(counts)))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.steps % self.plan.every == 0:
            for g in self.gates:
                g.mu.clamp_(-2 * g.penalty_sigma, 1 + 2 * g.penalty_sigma)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        own = ("steps", "start", "target", "adjusted")
        return {**super().state_dict(), **{k: getattr(self, k) for k in own}}


class Controlled(Planned):
    """A feedback controller that adjusts lambda so that the density meets its target and all gates become binary.

    The error is log(density / path), clipped to [-1, 1], where `path` is the planned density at this step. lambda is
    the sum of an integral and a proportional term. A negative lambda opens gates. If lambda could not be negative, the
    controller could not reach a target density above the one at which an unpenalised search ends. The error and the
    penalty gradients are computed every `Plan.every` steps and reused in between.

    The penalty gradients are scaled to the norm of the task gradient, averaged over the search so far, so lambda is of
    order one for any network, loss and stage of the search. The idea comes from GradBalance of Concrete Ticket Search.
    The density penalty has one scale for all gates. The decision penalty is scaled per tensor, because the few gates of
    the last layer have such large task gradients that a common scale would leave them undecided.

    The arguments are those of `Planned`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.decision, self.integral = penalty("induce_decision"), 0.0
        self.pull = 0.0  # lambda times the norm of the task gradient over that of the density penalty
        self.task = [0.0] * len(self.gates)  # mean norm of the task gradient so far, per gate tensor
        self.push = [torch.zeros_like(g.mu) for g in self.gates]  # gradients of the penalties
        self.spare: list[torch.Tensor] = []  # memory for the derivatives of the decision penalty
        self.given = [False] * len(self.gates)  # whether the gate's backward pass adds the gradient itself

    @property
    def measures(self) -> bool:
        """Whether this step measures the density and computes the penalty gradients."""
        return self.steps % self.plan.every == 0

    def before_forward(self, progress: float) -> None:
        super().before_forward(progress)
        # Between measurements, the penalty gradient is added inside the gate's backward pass, provided that it has the
        # memory layout of mu and there is only one process. Several processes must average the task gradients first.
        in_backward = not self.measures and distributed.size() == 1
        for g, push in zip(self.gates, self.push, strict=True):
            g.push.value = push if in_backward and layout(push) == layout(g.mu) else None
            g.push.reuse(g.mu if g.mu.device.type == "cpu" else None)
        self.given = [g.push.value is not None for g in self.gates]

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        for g in self.gates:
            g.push.reuse(None)  # in case the backward pass did not use the memory
        if self.measures:
            self._measure(progress)
        pushes = zip(self.gates, self.push, self.given, strict=True)
        missing = [(g, push) for g, push, given in pushes if not given or g.push.take() is not None]
        self.given = [False] * len(self.gates)
        if missing:  # one kernel launch on a GPU
            torch._foreach_add_([_gradient(g) for g, _ in missing], [push for _, push in missing])

    def _measure(self, progress: float) -> None:
        """Measure the density and compute the penalty gradients, which are reused until the next measurement."""
        error = math.log(max(self.density(), 1e-9) / self.path(progress))
        error = max(-1.0, min(1.0, error))
        self.integral = max(-5.0, min(5.0, self.integral + self.plan.integral * error))
        self.weight = self.integral + self.plan.proportional * error
        count = self.steps // self.plan.every + 1
        on_cpu = self.gates[0].mu.device.type == "cpu"
        memory, self.push = self.push if on_cpu else [], []
        slopes = self._slopes(self.penalty, memory)
        if self.factors:
            torch._foreach_mul_(slopes, self.factors)
        norms = _norms([*(_gradient(g) for g in self.gates), *slopes])
        self.task = [t + (norm - t) / count for t, norm in zip(self.task, norms[: len(slopes)], strict=True)]
        self.pull = self.weight * math.hypot(*self.task) / (math.hypot(*norms[len(slopes) :]) + _TINY)
        self.push = [slope.mul_(self.pull) for slope in slopes]
        firmness = self.plan.firmness * max(0.0, (progress - self.plan.decide) / (1 - self.plan.decide))
        # If the decision penalty acted while the density is off its path, it would fix the wrong number of open gates.
        # Hard gates are already binary.
        if firmness and not self.gates[0].hard and abs(error) <= self.plan.tolerance:
            slopes = self._slopes(self.decision, self.spare)
            self.spare = slopes if on_cpu else []
            for slope, norm, push, task in zip(slopes, _norms(slopes), self.push, self.task, strict=True):
                push.add_(slope, alpha=firmness * task / (norm + _TINY))

    def _slopes(self, of: Penalty, memory: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the derivatives of a penalty for all gates, in the tensors of `memory` if there are any."""
        out: Sequence[torch.Tensor | None] = memory or [None] * len(self.gates)
        return [slope_into(o, of, g.mu, g.penalty_sigma) for o, g in zip(out, self.gates, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        own = ("weight", "integral", "task", "push", "pull")
        return {**super().state_dict(), **{k: getattr(self, k) for k in own}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        # Checkpoints are loaded to the CPU.
        self.push = [p.to(g.mu.device) for p, g in zip(self.push, self.gates, strict=True)]


_TINY = 1e-12


def _norms(tensors: list[torch.Tensor]) -> list[float]:
    return list(torch.stack([torch.linalg.vector_norm(t) for t in tensors]).tolist())


def _gradient(gate: Gaussian) -> torch.Tensor:
    if gate.mu.grad is None:
        raise CrbgError(
            "a gate received no gradient because the forward pass does not use its weight; do not gate this weight"
        )
    return gate.mu.grad
