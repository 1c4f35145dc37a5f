"""Tickets by a score of the weights before they are trained: SNIP, GraSP, SynFlow, magnitude, random; then training.

SNIP (Lee et al. 2019) and GraSP (Wang et al. 2020) score once, SynFlow (Tanaka et al. 2020) a hundred times; all may go
in rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods._ranked import asked
from crbg.methods._winning import Recipe, winning
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
# Of `crbg.search.saliency`, which needs torch.
SCORES = ("magnitude", "random", "snip", "grasp", "grasp_abs", "synflow")
TRAITS = Traits("of the weights, once", "exact of all together", "trained afterwards")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options(Recipe):
    """score: snip, grasp, grasp_abs, synflow, magnitude, random.

    rounds: of scoring, 0 for what the score's paper does.
    """

    score: str = option("snip", choices=SCORES)
    rounds: int = option(0, least=0)


def work(o: Options, density: float | None, epochs: int) -> float:
    """Count epochs in all; scoring costs next to nothing."""
    return o.epochs(epochs)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Score on one class-balanced batch, keep the best, train them."""
    from crbg.masks.select import keep_count, select
    from crbg.search import saliency

    o, density = options, asked(task, "saliency")
    if o.rounds < 0:
        raise CrbgError(f"rounds {o.rounds} must be at least 0")
    saliency.by_name(o.score)  # refused before the warm-up
    rounds = o.rounds or (100 if o.score == "synflow" else 1)

    def draw(batch: list[tuple[Tensor, Tensor]]) -> SearchResult:
        scores = task.once(
            "scores", {**o.parts(), "density": density, "saliency": VERSION},
            lambda: saliency.prune(model, o.score, density, rounds, batch, task.loss, task.seed),
        )  # fmt: skip
        return SearchResult(select(scores, keep_count(density, sum(s.numel() for s in scores.values()))), scores=scores)

    return winning(model, task, o, draw)
