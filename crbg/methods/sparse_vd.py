"""Sparse variational dropout (Molchanov et al. 2017): train weights and noise, prune weights that are mostly noise.

The approximate posterior of a weight is q(w) = N(theta, sigma^2). With log alpha = log sigma^2 - log theta^2, weights
with log alpha >= 3 are pruned. The weights are trained, so the result is not a strong ticket. The density depends on
the data and cannot be chosen.
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
TRAITS = Traits("pathwise, Gaussian on outputs", "determined by the data", "trained")
NEEDS_DENSITY = False


@dataclass(frozen=True)
class Options:
    """Options of Adam on weights and noise; the learning rate is constant in the first half, then decays linearly to 0.

    Attributes:
        log_sigma2: Initial log sigma^2.
        threshold: Weights with log alpha at or above this value are pruned.
        silent: Fraction of the training during which the factor on the KL term is 0.
        full: Fraction of the training after which this factor is 1; it increases linearly from `silent` to `full`.
    """

    lr: float = option(1e-3, least=0)
    log_sigma2: float = -10.0
    threshold: float = 3.0
    silent: float = share(0.025)
    full: float = share(0.1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train weights and noise, and keep the weights with log alpha below the threshold.

    Raises:
        CrbgError: a density is given, the run uses several processes, or a layer is neither linear nor a convolution.
    """
    import torch

    from crbg.masks.mask import Mask
    from crbg.search.variational import Variational, ramp
    from crbg.training.forward import batch_size

    o = options
    if distributed.size() > 1:
        raise CrbgError(
            "sparse_vd draws noise for every example and does not support several processes; use one process"
        )
    if task.density is not None:
        raise CrbgError("sparse_vd determines the density itself; leave `density` out")
    with torch.random.fork_rng(devices=[]):  # a shuffling loader would consume random numbers of the search
        images = len(task.batches) * batch_size(*next(iter(task.batches.epoch(0))))
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
