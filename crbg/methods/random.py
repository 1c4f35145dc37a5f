"""A control without a search: a random mask with equal density in every layer (at density 1, the untrained network)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods.contract import SearchResult, SearchTask, Traits

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("none", "exact, per layer")


@dataclass(frozen=True)
class Options:
    """The method has no options."""


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Sample the mask. Nothing is trained, and `task.epochs` is ignored."""
    from crbg.gates.selection import candidate_mask
    from crbg.masks import controls
    from crbg.masks.mask import Mask

    every = Mask(candidate_mask(model))
    return SearchResult(controls.random(every, 1.0 if task.density is None else task.density, task.seed, every))
