"""The gate search of Concrete Ticket Search (Arora & Teuscher 2025), on untrained weights and with the task's loss.

Concrete gates with temperature 2/3 start at the logit of the density. GradBalance enforces a budget on the sum of the
noise-free gate values, as in the authors' public code. Finally, the weights with the largest logits are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._scored import BudgetedSearch, required_density, search_with_budget
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("pathwise, Concrete", "exact, global (final top-k)")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of Adam on the logits.

    Attributes:
        drop: Fraction of the search after which the learning rate is divided by 10.
        slack: The budget, as a multiple of the number of weights to keep.
    """

    lr: float = option(0.1, least=0)
    drop: float = share(0.88)
    slack: float = option(1.1, above=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a strong ticket with the global density `task.density`, at which the gates also start."""
    import torch

    from crbg.gates.concrete import Concrete, logit

    o, density = options, required_density(task, "concrete")

    def make(name: str, w: Tensor) -> Gate:
        return Concrete(torch.full_like(w, logit(density)))

    return search_with_budget(model, task, make, BudgetedSearch(density, o.lr, o.drop, o.slack))
