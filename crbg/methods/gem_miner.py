"""Gem-Miner's search (Sreenivasan et al.

2022) without its fine-tuning: scores in [0, 1], rounded, the lowest given up in steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._ranked import asked, like, ranked
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate
    from crbg.training.hooks import SearchHook

VERSION = 1
TRAITS = Traits("straight-through, rounding", "exact of all together")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """SGD on the scores; `decay` is the L2 pull towards 0, `periods` the number of times that weights are given up for good."""

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    decay: float = option(1e-4, least=0)
    periods: int = option(10, least=1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Give weights up until the asked share is left; scores start as U[0, 1]."""
    import torch

    from crbg import rng
    from crbg.gates.scores import Scored
    from crbg.masks.select import keep_count
    from crbg.search.gradbalance import GiveUp

    o, density = options, asked(task, "gem_miner")

    def make(name: str, w: Tensor) -> Gate:
        return Scored(like(w, rng.uniform(w.numel(), task.seed, "score", name)))

    def learn(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        scored = [g for g in gates if isinstance(g, Scored)]
        keep = keep_count(density, sum(g.p.numel() for g in scored))
        sgd = torch.optim.SGD([g.p for g in scored], lr=o.lr, momentum=o.momentum)
        return sgd, GiveUp(scored, keep, o.periods, o.decay)

    return ranked(model, task, make, learn)
