"""Iterative weight recycling (Gorbett & Whitley 2023): edge-popup that copies its best weights over its worst ones.

The result is not a strong ticket of the initial network, because weights are copied to other places. Tables therefore
list it separately.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from crbg.methods import edge_popup
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import nn

    from crbg.gates.scores import TopK
    from crbg.training.hooks import SearchHook

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
    from crbg.gates import attach
    from crbg.search.gradbalance import Recycle

    popup = asdict(options)
    period, rate = popup.pop("period"), popup.pop("rate")
    before = {n: w.detach().clone() for n, w in attach.weights(model).items()}

    def hook(gates: list[TopK]) -> SearchHook:
        return Recycle(attach.weights(model), gates, period, rate)

    found = edge_popup.find(model, task, edge_popup.Options(**popup), hook)
    found.changed = {n: "copied" for n, w in attach.weights(model).items() if not w.equal(before[n])}
    return found
