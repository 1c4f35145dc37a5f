"""The search of Concrete Ticket Search (Arora & Teuscher 2025) for strong tickets: untrained weights, the task's loss.

Concrete gates with temperature 2/3 start at the logit of the density, GradBalance holds their budget, and the weights
with the largest logits are kept. The budget counts the gates' values without noise, as in the authors' public code.
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
TRAITS = Traits("pathwise, Concrete", "exact of all together (cut at the end)")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Adam on the logits.

    Attributes:
        drop: Share of the search after which the learning rate falls to a tenth.
        slack: The budget, as a multiple of the number of weights to keep.
    """

    lr: float = option(0.1, least=0)
    drop: float = share(0.88)
    slack: float = option(1.1, above=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a ticket of `task.density` over all layers together; the gates start at this density."""
    import torch

    from crbg.gates.concrete import Concrete, logit

    o, density = options, required_density(task, "concrete")

    def make(name: str, w: Tensor) -> Gate:
        return Concrete(torch.full_like(w, logit(density)))

    return search_with_budget(model, task, make, BudgetedSearch(density, o.lr, o.drop, o.slack))
