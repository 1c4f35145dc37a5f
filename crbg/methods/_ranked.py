"""What most strong-ticket methods share: gates on frozen weights, a search, and exactly the asked number of weights kept by score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from crbg.gates.attach import Make
    from crbg.gates.base import Gate
    from crbg.training.hooks import SearchHook
    from crbg.training.loop import Objective

    Learn = Callable[[list[Gate]], tuple[torch.optim.Optimizer, SearchHook]]


def ranked(
    model: nn.Module,
    task: SearchTask,
    make: Make,
    learn: Learn,
    schedule: Callable[[float], float] | None = None,
    sampling: bool = False,
    counts: Callable[[Mapping[str, Tensor]], int | dict[str, int]] | None = None,
    objective: Objective | None = None,
) -> SearchResult:
    """Search with gates from `make` and with the optimiser and hooks from `learn`, then select.

    `counts` turns scores into the number to keep, of all together or of each; by default the density asked for of all
    together.
    """
    import torch

    from crbg.gates import attach
    from crbg.masks.select import keep_count, select

    with attach.frozen(model), attach.gated(model, make), attach.sampling(model, sampling):
        found = attach.attached_gates(model)
        optimiser, search = learn(list(found.values()))
        history = task.fit(model, optimiser, search, schedule=schedule, objective=objective)
        scores = {n: g.scores().cpu() for n, g in found.items()}
        soft = {n: g.soft().cpu() for n, g in found.items()} if sampling else {}  # others are binary all along
        gains = {n: torch.tensor(g.gain) for n, g in found.items() if getattr(g, "gain", 1.0) != 1.0}
    keep = counts(scores) if counts else keep_count(asked(task, "select"), sum(s.numel() for s in scores.values()))
    return SearchResult(select(scores, keep), scores=scores, soft=soft, history=history, gain=gains)


def asked(task: SearchTask, method: str) -> float:
    """Return the density asked for; raises CrbgError where a method that needs one was given none."""
    if not task.density:
        raise CrbgError(f"{method} needs a density above 0: it keeps a share that you choose")
    return task.density


def balanced(
    model: nn.Module,
    task: SearchTask,
    density: float,
    make: Callable[[str, Tensor], Gate],
    lr: float,
    drop: float,
    slack: float,
    control: Callable[[list[Any], int], SearchHook] | None = None,
    objective: Objective | None = None,
) -> SearchResult:
    """Search with gates that have a budget, held by GradBalance or what `control(gates, keep)` gives.

    Adam, whose rate falls to a tenth after the share `drop`.
    """
    import torch

    from crbg.gates.concrete import Budgeted, Clipped
    from crbg.masks.select import keep_count
    from crbg.search.gradbalance import GradBalance

    def learn(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        budgeted = [g for g in gates if isinstance(g, Budgeted | Clipped)]
        keep = keep_count(density, sum(g.learnt.numel() for g in budgeted))
        adam = torch.optim.Adam([g.learnt for g in budgeted], lr=lr, fused=True)
        return adam, control(budgeted, keep) if control else GradBalance(budgeted, keep, slack)

    return ranked(
        model, task, make, learn, lambda progress: 1.0 if progress < drop else 0.1, sampling=True, objective=objective
    )


def like(w: Tensor, values: np.ndarray) -> Tensor:
    """Turn one drawn number for each weight into a tensor of the weight's shape, on its device."""
    import torch

    return torch.from_numpy(values).to(torch.float32).reshape(w.shape).to(w.device)
