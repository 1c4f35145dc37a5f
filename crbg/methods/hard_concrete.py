"""Hard-concrete (L0) gates (Louizos et al. 2018), one a weight, on frozen weights, held at a density by GradBalance.

The paper has gates on units, trains the weights with them and fixes lambda; here only the gate differs from the other rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods import Found, Task
from crbg.methods._ranked import asked, drawn, ranked, tenth_after

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.fit import Search
    from crbg.gate import Gate

VERSION = 1


@dataclass(frozen=True)
class Options:
    """Adam; the rate falls to a tenth after the share `drop` of the search. start: P(z > 0) at first, 0 for the density.

    slack: the budget is that many times the target. spread: standard deviation of log alpha at first.
    """

    lr: float = 0.1
    drop: float = 0.88
    slack: float = 1.1
    start: float = 0.0
    spread: float = 0.01


def find(model: nn.Module, task: Task, options: Options) -> Found:
    """Search from the density asked for, or from `start` down to it."""
    import torch

    from crbg import rivals, rng
    from crbg.select import keep_count

    o, density = options, asked(task, "hard_concrete")

    def make(name: str, w: Tensor) -> Gate:
        return rivals.HardConcrete(
            rivals.logit(o.start or density) - rivals.HardConcrete.shift + o.spread * drawn(w, rng.normal, task, name)
        )

    def learn(gates: list[Gate]) -> tuple[torch.optim.Optimizer, Search]:
        budgeted = [g for g in gates if isinstance(g, rivals.Budgeted)]
        keep = keep_count(density, sum(g.logit.numel() for g in budgeted))
        adam = torch.optim.Adam([g.logit for g in budgeted], lr=o.lr, fused=True)
        return adam, rivals.GradBalance(budgeted, keep, o.slack)

    return ranked(model, task, make, learn, tenth_after(o.drop), sampling=True)
