"""Sparsity control: the search hooks that add penalties to gate gradients and steer them to a density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.gates.attach import attached_gates
from crbg.gates.gaussian import Gaussian, Units
from crbg.gates.kernels import layout
from crbg.search.penalties import penalty
from crbg.training import distributed
from crbg.training.clock import Collapse
from crbg.training.hooks import Row, SearchHook

BINS = (-1.0, 2.0, 60)  # range of mu and number of bins of its histograms; values outside count in the end bins


class Penalised(SearchHook):
    """Add lambda times the mean of one penalty over all gates: the thesis's objective with a fixed lambda.

    `anneal_to` lowers (or raises) the noise linearly to another level over the first 80 % of the search.
    """

    def __init__(self, model: nn.Module, name: str, weight: float, anneal_to: float | None = None) -> None:
        found = {n: g for n, g in attached_gates(model).items() if isinstance(g, Gaussian)}
        if not found:
            raise CrbgError("the network carries no Gaussian gates to penalise")
        self.by_name = found
        self.gates = list(dict.fromkeys(found.values()))  # a gate shared by several weights counts once
        self.total = sum(g.mu.numel() for g in self.gates)
        self.penalty, self.weight = penalty(name), weight
        self.anneal_to, self.noise0 = anneal_to, [g.noise for g in self.gates]
        self.middle: list[int] = []  # the histogram of mu at half time

    def before_forward(self, progress: float) -> None:
        if progress >= 0.5 and not self.middle:
            self.middle = self.picture()
        if self.anneal_to is not None:
            done = min(1.0, progress / 0.8)
            for gate, noise in zip(self.gates, self.noise0, strict=True):
                gate.noise = noise + (self.anneal_to - noise) * done

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        for g in self.gates:
            _gradient(g).add_(self.penalty.slope(g.mu, g.penalty_sigma), alpha=self.weight / self.total)

    def density(self) -> float:
        """Share of gates with mu > 1/2: the natural density of the `half` reading."""
        # Read once: on a GPU every reading waits for all work before it.
        return int(torch.stack([torch.count_nonzero(g.mu.detach() > 0.5) for g in self.gates]).sum()) / self.total

    def undecided(self) -> float:
        """Share of gates with 0 < mu < 1."""
        return (
            int(torch.stack([((g.mu.detach() > 0) & (g.mu.detach() < 1)).sum() for g in self.gates]).sum()) / self.total
        )

    def picture(self) -> list[int]:
        """Histogram of mu over all gates, in the bins of `BINS`."""
        low, high, count = BINS
        every = torch.cat([g.mu.detach().flatten() for g in self.gates]).clamp(low, high)
        return [int(c) for c in torch.histc(every, count, low, high)]

    def log(self) -> Row:
        density = self.density()
        if density == 0.0:
            raise Collapse("no gate is above 1/2: the penalty has closed the whole network")
        layers = {f"density {n}": float((g.mu.detach() > 0.5).double().mean()) for n, g in self.by_name.items()}
        return {"density": density, "undecided": self.undecided(), "lambda": self.weight, **layers}

    def state_dict(self) -> dict[str, Any]:
        return {"middle": self.middle}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, list(value) if isinstance(value, list) else value)


class Centred(Penalised):
    """STG's objective as published: the mean penalty times a fixed lambda, and weight decay on m = mu - 1/2."""

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
    """When a controlled search does what, as shares of the whole search, and how hard it pulls.

    The density is led from its start to the target along a geometric path that ends at `reach`; from `decide` on, a
    decision penalty rises linearly to `firmness` at the end, so that the network trains as the binary one it will be.
    It pauses while |log(density / path)| exceeds `tolerance`. In the last share `polish` of the search the gates are
    hard, 1[mu > 1/2], with straight-through gradients, and nothing but the density is steered: the ticket itself is
    trained on.
    """

    reach: float = 0.4
    decide: float = 0.5
    firmness: float = 1.0
    integral: float = 0.05
    proportional: float = 1.0
    tolerance: float = 0.1
    every: int = 5
    polish: float = 0.0


class Controlled(Penalised):
    """Hold a search at a target density by feedback on lambda, and decide its gates before the end.

    Penalties are scaled to the norm of the task's gradient (as CTS's GradBalance does), averaged over the search so
    far, so that lambda is of order one whatever the network, the loss and the stage. The pull towards the density
    compares all gates with one another; the decision is scaled tensor by tensor, because the few gates of a last layer
    have gradients so large that a common scale would leave them undecided. lambda may become negative, which opens
    gates: without that a target above the natural density could not be held. The error signal is log(density / path),
    clipped to [-1, 1]; lambda = integral + proportional part. All this is measured every few steps (`Plan.every`) and
    held in between. mu is kept within [-2 sigma, 1 + 2 sigma] of the penalty, since a gate farther out is out of the
    reach of any penalty of the form Phi(mu / sigma).
    """

    def __init__(
        self, model: nn.Module, name: str, density: float, plan: Plan | None = None, anneal_to: float | None = None
    ) -> None:
        super().__init__(model, name, 0.0, anneal_to)
        self.target, self.plan = density, plan or Plan()
        if self.plan.polish and any(isinstance(g, Units) for g in self.gates):
            raise CrbgError("hard gates (polish) are for gates on weights, not on units")
        self.decision = penalty("induce_decision")
        self.start = max(self.density(), density)
        self.integral, self.steps = 0.0, 0
        self.task = [0.0] * len(self.gates)  # mean norm of the task's gradient so far, per gate tensor
        self.push = [torch.zeros_like(g.mu) for g in self.gates]  # what the penalties add to the gradients
        self.given = [False] * len(self.gates)  # whether a gate may add its push itself

    def path(self, progress: float) -> float:
        """Density asked for at a stage of the search."""
        done = min(1.0, progress / self.plan.reach)
        return float(self.start ** (1 - done) * self.target**done)

    def before_forward(self, progress: float) -> None:
        super().before_forward(progress)
        if self.plan.polish:
            for g in self.gates:
                g.hard = progress >= 1 - self.plan.polish
        # Between measurements a gate's own backward pass adds the push, where it can. Several processes average
        # gradients first.
        early = self.steps % self.plan.every and distributed.size() == 1
        for g, push in zip(self.gates, self.push, strict=True):
            g.push.value = push if early and layout(push) == layout(g.mu) else None
        self.given = [g.push.value is not None for g in self.gates]

    @torch.no_grad()
    def after_backward(self, progress: float) -> None:
        if self.steps % self.plan.every == 0:
            self._measure(progress)
        pushes = zip(self.gates, self.push, self.given, strict=True)
        late = [(g, push) for g, push, given in pushes if not given or g.push.take() is not None]
        self.given = [False] * len(self.gates)
        if late:  # on a GPU one launch for all
            torch._foreach_add_([_gradient(g) for g, _ in late], [push for _, push in late])

    def _measure(self, progress: float) -> None:
        """Compare densities, then weigh both penalties for the next few steps, in which no gate moves far."""
        error = math.log(max(self.density(), 1e-9) / self.path(progress))
        error = max(-1.0, min(1.0, error))
        self.integral = max(-5.0, min(5.0, self.integral + self.plan.integral * error))
        self.weight = self.integral + self.plan.proportional * error
        count = self.steps // self.plan.every + 1
        self.push = []  # the memory serves those that follow
        slopes = [self.penalty.slope(g.mu, g.penalty_sigma) for g in self.gates]
        norms = _norms([*(_gradient(g) for g in self.gates), *slopes])
        self.task = [t + (norm - t) / count for t, norm in zip(self.task, norms[: len(slopes)], strict=True)]
        pull = self.weight * math.hypot(*self.task) / (math.hypot(*norms[len(slopes) :]) + _TINY)
        self.push = [slope.mul_(pull) for slope in slopes]
        firmness = self.plan.firmness * max(0.0, (progress - self.plan.decide) / (1 - self.plan.decide))
        # Deciding gates while the density is off its path would lock the wrong number of them open; hard gates are
        # decided.
        if firmness and not self.gates[0].hard and abs(error) <= self.plan.tolerance:
            slopes = [self.decision.slope(g.mu, g.penalty_sigma) for g in self.gates]
            for slope, norm, push, task in zip(slopes, _norms(slopes), self.push, self.task, strict=True):
                push.add_(slope, alpha=firmness * task / (norm + _TINY))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.steps % self.plan.every == 0:
            for g in self.gates:
                g.mu.clamp_(-2 * g.penalty_sigma, 1 + 2 * g.penalty_sigma)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        own = ("weight", "integral", "steps", "start", "task", "push")
        return {**super().state_dict(), **{k: getattr(self, k) for k in own}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.push = [
            p.to(g.mu.device) for p, g in zip(self.push, self.gates, strict=True)
        ]  # a checkpoint lies on the CPU


_TINY = 1e-12


def _norms(tensors: list[torch.Tensor]) -> list[float]:
    return list(torch.stack([torch.linalg.vector_norm(t) for t in tensors]).tolist())


def _gradient(gate: Gaussian) -> torch.Tensor:
    if gate.mu.grad is None:
        raise CrbgError("a gate received no gradient: is the weight it stands on used in the forward pass?")
    return gate.mu.grad
