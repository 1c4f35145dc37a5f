"""Concrete Ticket Search's search (Arora & Teuscher 2025) on untrained weights, loss objective, without training afterwards.

Concrete gates at temperature 2/3 start at the logit of the density, GradBalance holds their budget, the top k of the
logits are kept. The budget counts the gate without noise, as in the authors' public code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods._ranked import asked, balanced
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
    """Adam; the rate falls to a tenth after the share `drop` of the search.

    slack: the budget is that many times the target.
    """

    lr: float = option(0.1, least=0)
    drop: float = share(0.88)
    slack: float = option(1.1, above=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search from the density asked for and near it."""
    import torch

    from crbg.gates.concrete import Concrete, logit

    o, density = options, asked(task, "concrete")

    def make(name: str, w: Tensor) -> Gate:
        return Concrete(torch.full_like(w, logit(density)))

    return balanced(model, task, density, make, o.lr, o.drop, o.slack)
