"""Iterative weight recycling (Gorbett & Whitley 2023): edge-popup that copies its best weights over its worst ones.

The result is not a strong ticket of the initial network, because weights are copied to other places. Tables therefore
list it separately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods import edge_popup
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("straight-through, top-k", "exact, per layer", "partly copied")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of edge-popup (with the same density in every layer), and of recycling.

    Attributes:
        scaled: Multiply the weights by sqrt(1 / density).
        period: Number of training steps between two recyclings.
        rate: Share of each layer's weights that is overwritten; at most 1/2.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scaled: bool = True
    period: int = option(300, least=1)
    rate: float = option(0.2, least=0, most=0.5)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a ticket with `task.density` in every layer; the copied weights remain in the model."""
    from crbg.search.weight_changes import Recycle

    o = options
    return edge_popup.find_while_changing(
        model, task, o, lambda weights, gates: Recycle(weights, gates, o.period, o.rate), "copied"
    )
