"""The dense reference: train all parameters, or only those of the normalisation layers, without a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("ordinary, w.r.t. weights", "all weights kept", "trained")


@dataclass(frozen=True)
class Options:
    """Options of the optimiser; the learning rate follows a cosine schedule to 0.

    Attributes:
        optimiser: `adam`, or `sgd` with momentum 0.9.
        part: Parameters to train: `all`, or `norm` for the gains and shifts of normalisation layers.
        keep: Weights to keep: those of the `last` epoch, or of the epoch that is `best` on the validation part (early
            stopping).
        weight_decay: L2 penalty of the optimiser.
    """

    optimiser: str = option("adam", choices=("adam", "sgd"))
    lr: float = option(1e-3, least=0)
    part: str = option("all", choices=("all", "norm"))
    keep: str = option("last", choices=("last", "best"))
    weight_decay: float = option(0.0, least=0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train the chosen parameters; the mask keeps every weight.

    Raises:
        CrbgError: `part` is `norm` and no normalisation layer has gains or shifts, or `keep` is `best` and the task has
            no validation part.
    """
    from crbg.gates.attach import frozen, weights
    from crbg.masks.mask import Mask
    from crbg.models.initial_weights import norms
    from crbg.training.hooks import KeepBest
    from crbg.training.schedules import optimiser

    named = dict(model.named_parameters()) if options.part == "all" else norms(model)
    if not named:
        raise CrbgError(
            "`part: norm` needs normalisation layers with gains or shifts; the network has none: use `part: all`"
        )
    if options.keep == "best" and task.validate is None:
        raise CrbgError("`keep: best` needs a validation part, which this run uses for training; use `keep: last`")
    made = optimiser(options.optimiser, list(named.values()), options.lr, weight_decay=options.weight_decay)
    best = KeepBest(model, task.validate) if task.validate and options.keep == "best" else None
    with frozen(model):
        for p in named.values():
            p.requires_grad_(True)
        history = task.fit(model, made, best)
    if best:
        best.restore()
    return SearchResult(Mask.full(weights(model)), changed=dict.fromkeys(named, "trained"), history=history)
