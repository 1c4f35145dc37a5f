"""Stochastic gates (STG, Yamada et al. 2020) with their published settings, on frozen weights.

The paper puts gates on the input features of a network and trains both jointly. Here, the gates are on the weights,
which stay frozen. With the published learning rate, gates hardly move in a search of the usual length. The results
therefore characterise these settings, not the potential of the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("pathwise, clipped Gaussian", "determined by the penalty")
NEEDS_DENSITY = False


@dataclass(frozen=True)
class Options:
    """Options of Adam with a constant learning rate.

    Attributes:
        sigma: Standard deviation of the noise, also used as sigma in the penalty.
        weight: Factor on the penalty, which is the mean of Phi(mu / sigma).
        weight_decay: Weight decay on mu - 1/2, as in the authors' code.
        spread: Standard deviation of the initial mu, whose mean is 1/2.
    """

    sigma: float = option(0.5, above=0)
    weight: float = option(0.1, least=0)
    lr: float = option(1e-5, least=0)
    weight_decay: float = option(1e-3, least=0)
    spread: float = option(0.01, least=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train the gates, and keep the weights with mu > 1/2; the result also contains the real-valued gates.

    Raises:
        CrbgError: a density is given.
    """
    import torch

    from crbg import rng
    from crbg.gates import attach
    from crbg.gates.gaussian import Gaussian
    from crbg.masks.mask import Mask
    from crbg.methods._scored import scores_of, soft_of, tensor_like
    from crbg.search import density_controller

    o = options
    if task.density is not None:
        raise CrbgError("stg determines the density itself; leave `density` out")

    def make(name: str, w: Tensor) -> Gate:
        mu = 0.5 + o.spread * tensor_like(w, rng.normal(w.numel(), task.seed, "mu", name))
        return Gaussian(mu, noise=o.sigma, penalty_sigma=o.sigma)

    with attach.frozen(model), attach.gated(model, make), attach.sampling(model):
        search = density_controller.Centred(model, "induce_sparse", o.weight, o.weight_decay)
        adam = torch.optim.Adam([g.mu for g in search.gates], lr=o.lr, fused=True)
        history = task.fit(model, adam, search, schedule=lambda progress: 1.0)
        scores, soft = scores_of(search.by_name), soft_of(search.by_name)
    return SearchResult(Mask({n: s > 0.5 for n, s in scores.items()}), scores=scores, soft=soft, history=history)
