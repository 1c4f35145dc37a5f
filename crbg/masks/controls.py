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


def shuffle(mask: Mask, seed: int, within: Mask | None = None) -> Mask:
    """Permute the mask at random within each tensor, so that every layer keeps its density.

    Args:
        mask: The mask of a ticket.
        seed: Seed of the permutation.
        within: If given, only weights that this mask keeps can be kept; `mask` must be a part of it.
    """
    there = Mask.full(mask) if within is None else within
    with ThreadPoolExecutor(rng.processors()) as pool:  # numpy releases the GIL while it sorts
        counts = there.layer_kept()
        orders = pool.map(lambda name: rng.permutation(counts[name], seed, "shuffle", name), mask)
        pairs = zip(mask.items(), orders, strict=True)
        mixed = {n: t[there[n]][torch.from_numpy(order)] for (n, t), order in pairs}
    return Mask({n: torch.zeros_like(mask[n]).masked_scatter(there[n], bits) for n, bits in mixed.items()})


def invert(scores: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Return the mask of the lowest scores in each tensor, with as many kept weights per tensor as in `mask`.

    Weights with the score minus infinity are never kept.
    """
    lowest = {n: torch.where(scores[n].isneginf(), scores[n], -scores[n]) for n in mask}
    return select(lowest, mask.layer_kept())


def random(mask: Mask, density: float, seed: int, within: Mask | None = None) -> Mask:
    """Draw a random mask in which every tensor has the given density.

    Args:
        mask: Supplies names and shapes only.
        density: Fraction of each tensor to keep.
        seed: Seed of the mask.
        within: If given, only weights that this mask keeps can be kept, and the density refers to them.
    """
    there = Mask.full(mask) if within is None else within
    marked = {}
    for name, t in there.items():
        places = t.flatten().nonzero().flatten()[: keep_count(density, int(t.sum()))]
        marked[name] = torch.zeros(t.numel(), dtype=torch.bool).index_fill(0, places, True).reshape(t.shape)
    return shuffle(Mask(marked), seed, within)
