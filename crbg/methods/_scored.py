"""Shared code of the scored methods: train gates on frozen weights, then keep the k weights with the largest scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from crbg.gates.attach import MakeGate
    from crbg.gates.base import Gate
    from crbg.training.hooks import SearchHook
    from crbg.training.loop import Objective

    Steering = Callable[[list[Gate]], tuple[torch.optim.Optimizer, SearchHook]]


def scores_of(gates: Mapping[str, Gate]) -> dict[str, Tensor]:
    """Return the scores of gates on the CPU, by name; minus infinity for weights that cannot be kept."""
    return {n: g.widen(g.scores(), -math.inf).cpu() for n, g in gates.items()}


def soft_of(gates: Mapping[str, Gate]) -> dict[str, Tensor]:
    """Return the noise-free values of gates on the CPU, by name; 0 for weights that cannot be kept."""
    return {n: g.widen(g.soft(), 0.0).cpu() for n, g in gates.items()}


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the raw weights, by name, for `changed_since`."""
    from crbg.gates import attach

    return {n: w.detach().clone() for n, w in attach.weights(model).items()}


def changed_since(before: Mapping[str, Tensor], model: nn.Module, role: str) -> dict[str, str]:
    """Return the role for each weight that differs from its copy."""
    from crbg.gates import attach

    now = attach.weights(model)
    return {n: role for n, w in before.items() if not now[n].equal(w)}


def search_and_select(
    model: nn.Module,
    task: SearchTask,
    make: MakeGate,
    steer: Steering,
    schedule: Callable[[float], float] | None = None,
    sampling: bool = False,
    counts: Callable[[Mapping[str, Tensor]], int | dict[str, int]] | None = None,
    objective: Objective | None = None,
) -> SearchResult:
    """Train gates on frozen weights, then keep the weights with the largest scores.

    Args:
        model: A network without gates; its weights do not change.
        task: Batches, density, epochs, seed and loss.
        make: Builds the gate of a weight tensor from the tensor's name and values.
        steer: Returns the optimiser and the search hook for a list of gates.
        schedule: Multiplier of the learning rate as a function of progress in [0, 1]; a cosine by default.
        sampling: Whether gates draw noise during the search.
        counts: Returns the number of weights to keep, given the scores: one total, or one number per tensor. By
            default, one total, which follows from the task's density.
        objective: Replaces the task's loss.

    Raises:
        CrbgError: the task has no density and `counts` is not given.
    """
    import torch

    from crbg.gates import attach
    from crbg.masks.select import select, total_count

    with attach.frozen(model), attach.gated(model, make), attach.sampling(model, sampling):
        gates = attach.attached_gates(model)
        optimiser, search = steer(list(gates.values()))
        history = task.fit(model, optimiser, search, schedule=schedule, objective=objective)
        scores = scores_of(gates)
        # Gates without noise are binary, so only sampling gates have real values to return.
        soft = soft_of(gates) if sampling else {}
        gains = {n: torch.tensor(g.gain) for n, g in gates.items() if getattr(g, "gain", 1.0) != 1.0}
    keep = counts(scores) if counts else total_count(scores, required_density(task, "select"))
    return SearchResult(select(scores, keep), scores=scores, soft=soft, history=history, gain=gains)


def required_density(task: SearchTask, method: str) -> float:
    """Return the density of the task.

    Raises:
        CrbgError: the task has no density, or a density of 0.
    """
    if not task.density:
        raise CrbgError(f"{method} needs a density above 0, the fraction of weights to keep; set `density`")
    return task.density


@dataclass(frozen=True)
class BudgetedSearch:
    """Settings of a search with a budget on the number of open gates.

    Attributes:
        density: Fraction of weights to keep.
        lr: Learning rate of Adam.
        drop: Fraction of the search after which the learning rate is divided by 10.
        slack: The budget of GradBalance, as a multiple of the number of weights to keep.
    """

    density: float
    lr: float
    drop: float
    slack: float


def search_with_budget(
    model: nn.Module,
    task: SearchTask,
    make: MakeGate,
    settings: BudgetedSearch,
    control: Callable[[list[Any], int], SearchHook] | None = None,
    objective: Objective | None = None,
) -> SearchResult:
    """Train gates with Adam under a density budget, then keep the weights with the largest scores.

    Args:
        model: A network without gates; its weights do not change.
        task: Batches, density, epochs, seed and loss.
        make: Builds the gate of a weight tensor; an instance of `Budgeted` or `Clipped`.
        settings: Density, learning rate and budget.
        control: Returns the density controller, given the gates and the number of weights to keep; GradBalance by
            default.
        objective: Replaces the task's loss.
    """
    import torch

    from crbg.gates.concrete import Budgeted, Clipped
    from crbg.masks.select import keep_count
    from crbg.search.gradbalance import GradBalance

    def steer(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        budgeted = [g for g in gates if isinstance(g, Budgeted | Clipped)]
        keep = keep_count(settings.density, sum(g.learnt.numel() for g in budgeted))
        adam = torch.optim.Adam([g.learnt for g in budgeted], lr=settings.lr, fused=True)
        return adam, control(budgeted, keep) if control else GradBalance(budgeted, keep, settings.slack)

    def schedule(progress: float) -> float:
        return 1.0 if progress < settings.drop else 0.1

    return search_and_select(model, task, make, steer, schedule, sampling=True, objective=objective)


def tensor_like(w: Tensor, values: np.ndarray) -> Tensor:
    """Convert an array with one number per weight to a float32 tensor with the shape and device of `w`."""
    import torch

    return torch.from_numpy(values).to(torch.float32).reshape(w.shape).to(w.device)
