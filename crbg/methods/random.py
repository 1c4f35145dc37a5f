"""Controls without a search: a random mask of the same density in every layer, or (density 1) the dense random network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods.contract import SearchResult, SearchTask, Traits

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("none", "exact by layer")


@dataclass(frozen=True)
class Options:
    """There is nothing to choose."""


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Draw the mask; nothing is trained and `task.epochs` is not used."""
    from crbg.gates.attach import weights
    from crbg.masks import controls
    from crbg.masks.mask import Mask

    full = Mask.full(weights(model))
    return SearchResult(controls.random(full, 1.0 if task.density is None else task.density, task.seed))
