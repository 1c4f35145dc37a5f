"""The dense reference: all weights trained, or only what normalises, nothing masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError, suggest
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("of the weights", "all kept", "trained")


@dataclass(frozen=True)
class Options:
    """optimiser: adam or sgd (momentum 0.9); both with a cosine to 0.

    part: all, or norm (gains and shifts of normalisation alone).
    """

    optimiser: str = option("adam", choices=("adam", "sgd"))
    lr: float = option(1e-3, least=0)
    part: str = option("all", choices=("all", "norm"))


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train every parameter of the part; the mask keeps everything."""
    from crbg.gates.attach import frozen, weights
    from crbg.masks.mask import Mask
    from crbg.models.initial_weights import norms
    from crbg.training.schedules import optimiser

    if options.part not in ("all", "norm"):
        raise CrbgError(f"unknown part {options.part!r}: {suggest(options.part, ('all', 'norm'))}")
    named = dict(model.named_parameters()) if options.part == "all" else norms(model)
    if not named:
        raise CrbgError("part is norm, but no normalisation of the network has gains or shifts")
    made = optimiser(options.optimiser, list(named.values()), options.lr)
    with frozen(model):
        for p in named.values():
            p.requires_grad_(True)
        history = task.fit(model, made)
    return SearchResult(Mask.full(weights(model)), changed=dict.fromkeys(named, "trained"), history=history)
