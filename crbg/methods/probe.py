"""A linear probe: train only the last layer, on the random features of the frozen layers before it.

It measures how accurate the random network is without any search for a ticket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("ordinary, w.r.t. last layer", "all weights kept", "last layer trained")


@dataclass(frozen=True)
class Options:
    """Options of Adam; the learning rate follows a cosine schedule to 0."""

    lr: float = option(1e-3, least=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train the weight tensor of the last layer; the mask keeps every weight."""
    import torch

    from crbg.gates.attach import frozen, weights
    from crbg.masks.mask import Mask

    raw = weights(model)
    last = list(raw)[-1]
    with frozen(model):
        raw[last].requires_grad_(True)
        adam = torch.optim.Adam([raw[last]], lr=options.lr, fused=True)
        history = task.fit(model, adam)
    full = Mask.full(raw)
    return SearchResult(full, changed={last: "trained"}, history=history)
