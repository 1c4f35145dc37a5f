"""Supermasks (Zhou et al. 2019): masks sampled from Bernoulli(sigmoid(v)), with straight-through gradients for v.

The paper does not control the density. Here, v starts at the logit of the target density, and the ticket keeps the k
weights with the largest v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._scored import required_density, search_and_select, tensor_like
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("straight-through, Bernoulli samples", "exact, global (final top-k)")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of SGD on v, with the paper's large learning rate.

    Attributes:
        rescale: Multiply the kept weights of each layer by (number of weights) / (number of kept weights), the paper's
            "dynamic weight rescaling".
    """

    lr: float = option(100.0, least=0)
    momentum: float = option(0.0, least=0, below=1)
    rescale: bool = False


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a strong ticket with the global density `task.density`."""
    import torch

    from crbg import rng
    from crbg.gates.concrete import logit
    from crbg.gates.scores import Sampled
    from crbg.training.hooks import SearchHook

    o, start = options, logit(required_density(task, "supermask"))

    def make(name: str, w: Tensor) -> Gate:
        return Sampled(start + 0.01 * tensor_like(w, rng.normal(w.numel(), task.seed, "score", name)), o.rescale)

    def steer(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        return torch.optim.SGD([p for g in gates for p in g.parameters()], lr=o.lr, momentum=o.momentum), SearchHook()

    return search_and_select(model, task, make, steer, sampling=True)
