"""Sparse variational dropout (Molchanov et al. 2017): weights and their noise are trained, and what is mostly noise is dropped.

Not a strong ticket: the weights are trained. q(w) = N(theta, sigma^2); log alpha = log sigma^2 - log theta^2; a weight
with log alpha >= 3 is dropped. The share kept follows from the data, so no density can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share
from crbg.training import distributed

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("pathwise, Gaussian on outputs", "whatever the data give", "trained")
NEEDS_DENSITY = False


@dataclass(frozen=True)
class Options:
    """Adam, its rate flat for the first half and then falling to 0; the KL term rises between the shares `silent` and `full`."""

    lr: float = option(1e-3, least=0)
    log_sigma2: float = -10.0
    threshold: float = 3.0
    silent: float = share(0.025)
    full: float = share(0.1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train, and keep the weights whose log alpha is below the threshold."""
    import torch

    from crbg.masks.mask import Mask
    from crbg.search.variational import Variational, ramp

    o = options
    if distributed.size() > 1:
        raise CrbgError(
            "sparse_vd draws noise for every example, which several processes would not share; run it in one"
        )
    if task.density is not None:
        raise CrbgError("sparse_vd finds its own sparsity; leave density out")
    with torch.random.fork_rng(devices=[]):  # a loader that shuffles draws here from the global generator
        images = len(task.batches) * len(next(iter(task.batches.epoch(0)))[0])
    with Variational(model, o.log_sigma2, o.threshold, lambda p: ramp(p, o.silent, o.full) / images) as noisy:
        adam = torch.optim.Adam([*noisy.weights.values(), *noisy.log_sigma2.parameters()], lr=o.lr, fused=True)
        history = task.fit(
            model,
            adam,
            noisy,
            lambda out, y: task.loss(out, y) + noisy.penalty(),
            lambda p: min(1.0, 2.0 * (1.0 - p)),
            [noisy.log_sigma2],
        )
        alpha = noisy.log_alpha()
    mask = Mask({n: (a < o.threshold).cpu() for n, a in alpha.items()})
    return SearchResult(
        mask, scores={n: -a.cpu() for n, a in alpha.items()}, changed=dict.fromkeys(alpha, "trained"), history=history
    )
