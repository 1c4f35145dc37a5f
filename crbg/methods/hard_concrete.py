"""Hard-concrete (L0) gates (Louizos et al. 2018) on frozen weights; GradBalance controls their density.

The paper puts gates on units, trains the weights jointly with the gates, and uses a fixed lambda. Here, there is one
gate per weight, and the rest of the search is the same as in `concrete`, so the two methods differ only in their gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._scored import BudgetedSearch, required_density, search_with_budget, tensor_like
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("pathwise, stretched Concrete", "exact, global (final top-k)")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of Adam on log alpha, the logits of the gates.

    Attributes:
        drop: Fraction of the search after which the learning rate is divided by 10.
        slack: The budget, as a multiple of the number of weights to keep.
        start: Initial P(z > 0); 0 selects the target density.
        spread: Initial standard deviation of log alpha.
    """

    lr: float = option(0.1, least=0)
    drop: float = share(0.88)
    slack: float = option(1.1, above=0)
    start: float = share(0.0)
    spread: float = option(0.01, least=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a strong ticket with the global density `task.density`."""
    from crbg import rng
    from crbg.gates.concrete import HardConcrete, logit

    o, density = options, required_density(task, "hard_concrete")

    def make(name: str, w: Tensor) -> Gate:
        spread = o.spread * tensor_like(w, rng.normal(w.numel(), task.seed, "score", name))
        return HardConcrete(logit(o.start or density) - HardConcrete.shift + spread)

    return search_with_budget(model, task, make, BudgetedSearch(density, o.lr, o.drop, o.slack))
