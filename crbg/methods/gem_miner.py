"""Gem-Miner's search (Sreenivasan et al. 2022), without its fine-tuning: rounded scores, permanent pruning in steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._scored import required_density, search_and_select, tensor_like
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate
    from crbg.training.hooks import SearchHook

VERSION = 1
TRAITS = Traits("straight-through, rounding", "exact, global")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of SGD on the scores.

    Attributes:
        decay: Weight of the L2 penalty on the scores.
        periods: Number of pruning steps.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    decay: float = option(1e-4, least=0)
    periods: int = option(10, least=1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Prune globally in steps until `task.density` is reached; initial scores are U[0, 1]."""
    import torch

    from crbg import rng
    from crbg.gates.scores import Rounded
    from crbg.masks.select import keep_count
    from crbg.search.gradbalance import GemMinerPruning

    o, density = options, required_density(task, "gem_miner")

    def make(name: str, w: Tensor) -> Gate:
        return Rounded(tensor_like(w, rng.uniform(w.numel(), task.seed, "score", name)))

    def steer(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        scored = [g for g in gates if isinstance(g, Rounded)]
        keep = keep_count(density, sum(g.p.numel() for g in scored))
        sgd = torch.optim.SGD([g.p for g in scored], lr=o.lr, momentum=o.momentum)
        return sgd, GemMinerPruning(scored, keep, o.periods, o.decay)

    return search_and_select(model, task, make, steer)
