"""Supermasks (Zhou et al. 2019): masks drawn from Bernoulli(sigmoid(v)), v learnt through the probability.

The paper controls no density; here v starts at the logit of the density asked for, and the ticket is the top k of v.
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

VERSION = 1
TRAITS = Traits("straight-through, Bernoulli draws", "exact of all together (cut at the end)")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """SGD with the paper's large learning rate. rescale: multiply kept weights by total / kept of their layer."""

    lr: float = option(100.0, least=0)
    momentum: float = option(0.0, least=0, below=1)
    rescale: bool = False


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search from the density asked for."""
    import torch

    from crbg import rng
    from crbg.gates.concrete import logit
    from crbg.gates.scores import Sampled
    from crbg.training.hooks import SearchHook

    o, start = options, logit(asked(task, "supermask"))

    def make(name: str, w: Tensor) -> Gate:
        return Sampled(start + 0.01 * like(w, rng.normal(w.numel(), task.seed, "score", name)), o.rescale)

    def learn(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        return torch.optim.SGD([p for g in gates for p in g.parameters()], lr=o.lr, momentum=o.momentum), SearchHook()

    return ranked(model, task, make, learn, sampling=True)
