"""Pruning at initialisation by SNIP, GraSP, SynFlow, magnitude or random scores, then training under the mask.

SNIP (Lee et al. 2019) and GraSP (Wang et al. 2020) score and prune once, SynFlow (Tanaka et al. 2020) in 100 rounds.
Here, every score can be used with any number of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crbg.methods._scored import required_density
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option
from crbg.search.winning import Recipe, winning

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
# Copied from `crbg.search.saliency`, which imports torch.
SCORES = ("magnitude", "random", "snip", "grasp", "grasp_abs", "synflow")
TRAITS = Traits("saliency at initialisation", "exact, global", "trained after pruning")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options(Recipe):
    """Options of the scoring, in addition to the training options.

    Attributes:
        score: `snip`, `grasp`, `grasp_abs`, `synflow`, `magnitude` or `random`.
        rounds: Number of rounds of scoring and pruning; 0 selects the number in the score's paper.
    """

    score: str = option("snip", choices=SCORES)
    rounds: int = option(0, least=0)


def work(o: Options, density: float | None, epochs: int) -> float:
    """Return the total number of training epochs; the cost of scoring is negligible and not counted."""
    return o.epochs(epochs)


def check_outputs(o: Options, outputs: Any) -> None:
    """Raise an error if SynFlow would sum probabilities."""
    from crbg.search import saliency
    from crbg.training.forward import logits

    if o.score == "synflow" and outputs is not None:
        saliency.check_no_softmax(logits(outputs))


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Score the weights on one class-balanced batch, keep those with the largest scores, and train them.

    Raises:
        CrbgError: the task has no density.
    """
    from crbg.masks.select import select, total_count
    from crbg.search import saliency

    o, density = options, required_density(task, "saliency")
    rounds = o.rounds or (100 if o.score == "synflow" else 1)

    def draw(batch: list[tuple[Tensor, Tensor]]) -> SearchResult:
        scores = task.cached(
            "scores",
            {**o.parts(), "density": density, "saliency": VERSION},
            lambda: saliency.prune(model, o.score, density, rounds, batch, task.loss, task.seed),
        )
        return SearchResult(select(scores, total_count(scores, density)), scores=scores)

    return winning(model, task, o, draw)
