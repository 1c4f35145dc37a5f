"""Iterative magnitude pruning: the lottery ticket itself (Frankle & Carbin 2019), with rewinding (Frankle et al. 2020: LTR).

Each level trains from the rewinding point under the mask so far, drops the smallest share of what is left over all
tensors together, and goes back to the point. The last level drops what is needed for the density, exactly. At density 1
it is plain dense training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods._ranked import asked
from crbg.methods._winning import Recipe, train, winning
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
TRAITS = Traits("of the weights", "exact of all together", "trained again and again")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options(Recipe):
    """drop: share of the surviving weights that a level drops.

    levels: 0 for as many as the density needs, 1 for one shot.
    """

    drop: float = option(0.2, above=0, below=1)
    levels: int = option(0, least=0)


def shares(o: Options, density: float) -> list[float]:
    """Say which share of all weights is left after each level: 0.8, 0.64, ..., the density."""
    if not 0 < o.drop < 1 or o.levels < 0:
        raise CrbgError(f"drop {o.drop} must lie between 0 and 1, and levels {o.levels} be at least 0")
    if density >= 1:
        return []
    if o.levels:
        return [density ** ((i + 1) / o.levels) for i in range(o.levels)]
    # A density written as a rounded power of 0.8 (0.107, 0.0074) is meant to be that power.
    count = math.ceil(round(math.log(density) / math.log(1 - o.drop), 1))
    return [(1 - o.drop) ** (i + 1) for i in range(count - 1)] + [density]


def work(o: Options, density: float | None, epochs: int) -> float:
    """Count epochs in all: a warm-up, and one training from the rewinding point for each level and for the ticket."""
    return o.epochs(epochs) + len(shares(o, density or 1.0)) * (epochs - o.rewind)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train, drop and rewind, level by level; runs at several densities share the levels they have in common."""
    from crbg.gates.attach import weights
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, select
    from crbg.search import saliency

    o, density = options, asked(task, "imp")
    shares(o, density)  # refuses nonsense before the warm-up

    def draw(batch: list[tuple[Tensor, Tensor]]) -> SearchResult:
        rewound = {n: t.detach().clone() for n, t in model.state_dict().items()}
        mask = Mask.full(weights(model))
        ranks = {n: w.detach().abs().double().cpu() * 0 for n, w in weights(model).items()}
        done: list[int] = []
        for level, share in enumerate(shares(o, density), start=1):

            def drop(level: int = level, ranks: dict[str, Tensor] = ranks, mask: Mask = mask) -> dict[str, Tensor]:
                model.load_state_dict(rewound)
                train(model, task, o, o.rewind, task.epochs, f"level{level}", mask)
                return saliency.ranked_after(ranks, {n: w.detach().abs() for n, w in weights(model).items()}, mask)

            ranks = task.once("level", {**o.training(), "kept": [*done], "imp": VERSION}, drop)
            keep = keep_count(share, mask.total)
            mask = select(ranks, keep, within=mask)
            done.append(keep)
        return SearchResult(mask, scores=ranks)

    return winning(model, task, o, draw)
