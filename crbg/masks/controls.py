"""Mask -> Mask controls (Frankle et al. 2021): does a ticket live in its weights or only in its layer densities.

For strong tickets nothing is trained after a control, so accuracy must fall to about chance. `reinit` changes the
weights instead of the mask (the next seed of the same law) and stands in `run`.
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
    """Permute the mask inside each tensor: layer densities stay, positions do not."""
    with ThreadPoolExecutor(rng.processors()) as pool:  # numpy sorts outside Python's lock
        orders = pool.map(lambda name: rng.permutation(mask[name].numel(), seed, "shuffle", name), mask)
        return Mask(
            {
                n: t.flatten()[torch.from_numpy(order)].reshape(t.shape)
                for (n, t), order in zip(mask.items(), orders, strict=True)
            }
        )


def invert(scores: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Keep the lowest scores, as many in each tensor as the mask keeps."""
    return select({n: -scores[n] for n in mask}, mask.layer_kept())


def random(mask: Mask, density: float, seed: int) -> Mask:
    """Keep a random share of every tensor, the same in each."""
    full = Mask({n: torch.zeros_like(t) for n, t in mask.items()})
    marked = {n: torch.arange(t.numel()).reshape(t.shape) < keep_count(density, t.numel()) for n, t in full.items()}
    return shuffle(Mask(marked), seed)
