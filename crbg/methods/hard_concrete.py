"""Hard-concrete (L0) gates (Louizos et al. 2018), one a weight, on frozen weights, held at a density by GradBalance.

The paper has gates on units, trains the weights with them and fixes lambda; here only the gate differs from the other
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._ranked import asked, balanced, like
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("pathwise, stretched Concrete", "exact of all together (cut at the end)")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Adam; the rate falls to a tenth after the share `drop` of the search. start: P(z > 0) at first, 0 for the density.

    slack: the budget is that many times the target. spread: standard deviation of log alpha at first.
    """

    lr: float = option(0.1, least=0)
    drop: float = share(0.88)
    slack: float = option(1.1, above=0)
    start: float = share(0.0)
    spread: float = option(0.01, least=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search from the density asked for, or from `start` down to it."""
    from crbg import rng
    from crbg.gates.concrete import HardConcrete, logit

    o, density = options, asked(task, "hard_concrete")

    def make(name: str, w: Tensor) -> Gate:
        return HardConcrete(
            logit(o.start or density)
            - HardConcrete.shift
            + o.spread * like(w, rng.normal(w.numel(), task.seed, "score", name))
        )

    return balanced(model, task, density, make, o.lr, o.drop, o.slack)
