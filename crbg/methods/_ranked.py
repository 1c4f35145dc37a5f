"""What most strong-ticket methods share: gates on frozen weights, a search, and exactly the asked number of weights kept by score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods import Found, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from crbg.attach import Make
    from crbg.fit import Search
    from crbg.gate import Gate

    Learn = Callable[[list[Gate]], tuple[torch.optim.Optimizer, Search]]


def ranked(
    model: nn.Module,
    task: Task,
    make: Make,
    learn: Learn,
    schedule: Callable[[float], float] | None = None,
    sampling: bool = False,
    counts: Callable[[Mapping[str, Tensor]], int | dict[str, int]] | None = None,
) -> Found:
    """Search with gates from `make` and with the optimiser and hooks from `learn`, then select.

    `counts` turns scores into the number to keep, of all together or of each; by default the density asked for of all together.
    """
    from crbg import attach
    from crbg.fit import cosine, fit
    from crbg.select import keep_count, select

    with attach.frozen(model), attach.gated(model, make), attach.sampling(model, sampling):
        found = attach.gates(model)
        optimiser, search = learn(list(found.values()))
        history = fit(
            model, task.batches, optimiser, task.epochs, task.seed, task.loss, search, schedule or cosine,
            checkpoint=task.checkpoint, clock=task.clock,
        )  # fmt: skip
        scores = {n: g.scores().cpu() for n, g in found.items()}
    keep = counts(scores) if counts else keep_count(asked(task, "select"), sum(s.numel() for s in scores.values()))
    return Found(select(scores, keep), scores=scores, history=history)


def asked(task: Task, method: str) -> float:
    """Return the density asked for; raises CrbgError where a method that needs one was given none."""
    if not task.density:
        raise CrbgError(f"{method} needs a density above 0: it keeps a share that you choose")
    return task.density


def drawn(w: Tensor, draw: Callable[..., object], task: Task, name: str) -> Tensor:
    """Draw one number for each weight from the seed, on the weight's device; `draw` is rng.uniform or rng.normal."""
    import torch

    return torch.from_numpy(draw(w.numel(), task.seed, "score", name)).to(torch.float32).reshape(w.shape).to(w.device)


def tenth_after(share: float) -> Callable[[float], float]:
    """Keep the rate until that share of the search, and a tenth of it afterwards."""
    return lambda progress: 1.0 if progress < share else 0.1
