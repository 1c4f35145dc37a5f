"""The dense reference: all weights trained, nothing masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError, choose
from crbg.methods import Found, Task, Traits

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("of the weights", "all kept", "trained")


@dataclass(frozen=True)
class Options:
    """optimiser: adam or sgd (momentum 0.9); both with a cosine to 0."""

    optimiser: str = "adam"
    lr: float = 1e-3


def find(model: nn.Module, task: Task, options: Options) -> Found:
    """Train every parameter; the mask keeps everything."""
    import torch

    from crbg.attach import weights
    from crbg.mask import Mask

    makers: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
        "adam": lambda p: torch.optim.Adam(p, lr=options.lr, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=options.lr, momentum=0.9),
    }
    if options.optimiser not in makers:
        raise CrbgError(f"unknown optimiser {options.optimiser!r}: {choose(options.optimiser, makers)}")
    history = task.fit(model, makers[options.optimiser](list(model.parameters())))
    full = Mask.full(weights(model))
    return Found(full, changed={n: "trained" for n, _ in model.named_parameters()}, history=history)
