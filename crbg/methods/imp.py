"""Iterative magnitude pruning: lottery tickets (Frankle & Carbin 2019), with rewinding (Frankle et al. 2020: LTR).

Each level trains from the rewinding point under the current mask, removes a fraction of the remaining weights, and
rewinds the others. The removed weights are those with the smallest magnitude over all tensors. The last level removes
exactly as many as the target density requires. At density 1, the method is dense training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._scored import required_density
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option
from crbg.search.winning import Recipe, Span, train, winning

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
TRAITS = Traits("ordinary, w.r.t. weights", "exact, global", "retrained after every pruning")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options(Recipe):
    """Options of the pruning levels, in addition to the training options.

    Attributes:
        drop: Fraction of the remaining weights that each level removes.
        levels: Number of pruning levels: 1 for one-shot pruning, 0 for as many as the target density requires.
    """

    drop: float = option(0.2, above=0, below=1)
    levels: int = option(0, least=0)


def shares(o: Options, density: float) -> list[float]:
    """Return the fraction of all weights that remains after each level: 0.8, 0.64, ..., the target density."""
    if density >= 1:
        return []
    if o.levels:
        return [density ** ((i + 1) / o.levels) for i in range(o.levels)]
    # Rounded, so that a density such as 0.107 or 0.0074, which is a rounded power of 0.8, needs no extra level.
    count = math.ceil(round(math.log(density) / math.log(1 - o.drop), 1))
    return [(1 - o.drop) ** (i + 1) for i in range(count - 1)] + [density]


def work(o: Options, density: float | None, epochs: int) -> float:
    """Return the total number of epochs.

    This is the training up to the rewinding point, plus the training from there for each level and for the ticket.
    """
    return o.epochs(epochs) + len(shares(o, density or 1.0)) * (epochs - o.rewind)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train, prune and rewind, level by level; runs at different densities reuse the cached levels that they share."""
    import torch

    from crbg.gates.selection import candidate_mask, weights
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, select
    from crbg.search import saliency
    from crbg.training.model_state import copied_tensors, put_tensors

    o, density = options, required_density(task, "imp")
    left = shares(o, density)  # raises for invalid options before any training

    def draw(batch: list[tuple[Tensor, Tensor]]) -> SearchResult:
        rewound = copied_tensors(model)
        mask = Mask(candidate_mask(model))
        total = mask.kept
        ranks = {n: torch.zeros(t.shape, dtype=torch.float64).masked_fill(~t, -math.inf) for n, t in mask.items()}
        kept: list[int] = []

        def trained_magnitudes() -> dict[str, Tensor]:
            """Train one level, and rank the weights by magnitude; weights that are already pruned rank last."""
            put_tensors(model, rewound)
            train(model, task, o, Span(f"level{len(kept) + 1}", o.rewind, task.epochs), mask)
            return saliency.ranked_after(ranks, {n: w.detach().abs() for n, w in weights(model).items()}, mask)

        for share in left:
            ranks = task.cached("level", {**o.training(), "kept": [*kept], "imp": VERSION}, trained_magnitudes)
            keep = keep_count(share, total)
            mask = select(ranks, keep, within=mask)
            kept.append(keep)
        return SearchResult(mask, scores=ranks)

    return winning(model, task, o, draw)
