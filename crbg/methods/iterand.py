"""Iterative randomisation (IteRand, Chijiwa et al. 2021): edge-popup that redraws pruned weights during the search.

The result is not a strong ticket of the initial network, because it uses redrawn weights. Tables therefore list it
separately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods import edge_popup
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("straight-through, top-k", "exact, per layer", "partly redrawn")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of edge-popup (with the same density in every layer), and of the redraws.

    Attributes:
        scaled: Multiply the weights by sqrt(1 / density).
        period: Number of training steps between redraws.
        rate: Probability that a pruned weight is redrawn.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scaled: bool = True
    period: int = option(300, least=1)
    rate: float = share(0.1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a ticket with `task.density` in every layer; the redrawn weights remain in the model."""
    from crbg.search.weight_changes import Redraw

    o = options
    return edge_popup.find_while_changing(
        model, task, o, lambda weights, gates: Redraw(weights, gates, task.seed, o.period, o.rate), "redrawn"
    )
