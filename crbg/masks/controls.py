"""Control masks (sanity checks of Frankle et al. 2021, "Pruning Neural Networks at Initialization").

They test whether the accuracy of a ticket depends on which weights it keeps, or only on how many it keeps in each
layer. A strong ticket is never trained, so with one of these masks its accuracy should be at chance level. The fourth
control, `reinit`, keeps the mask and draws new weights; it is not implemented here, because this module only changes
masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from crbg import rng
from crbg.masks.mask import Mask
from crbg.masks.select import keep_count, select


def shuffle(mask: Mask, seed: int) -> Mask:
    """Permute the mask at random within each tensor, so that every layer keeps its density."""
    with ThreadPoolExecutor(rng.processors()) as pool:  # numpy releases the GIL while it sorts
        orders = pool.map(lambda name: rng.permutation(mask[name].numel(), seed, "shuffle", name), mask)
        pairs = zip(mask.items(), orders, strict=True)
        return Mask({n: t.flatten()[torch.from_numpy(order)].reshape(t.shape) for (n, t), order in pairs})


def invert(scores: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Return the mask of the lowest scores in each tensor, with as many kept weights per tensor as in `mask`."""
    return select({n: -scores[n] for n in mask}, mask.layer_kept())


def random(mask: Mask, density: float, seed: int) -> Mask:
    """Draw a random mask in which every tensor has the given density. `mask` supplies names and shapes only."""
    full = Mask({n: torch.zeros_like(t) for n, t in mask.items()})
    marked = {n: torch.arange(t.numel()).reshape(t.shape) < keep_count(density, t.numel()) for n, t in full.items()}
    return shuffle(Mask(marked), seed)
