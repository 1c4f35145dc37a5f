"""Edge-popup (Ramanujan et al. 2020): scores by straight-through gradients, the top k of |s| of every layer kept.

With `scaled` the weights grow by sqrt(1 / k) with k the share kept, as the paper means it (its code uses the share
removed, which agrees only at k = 1/2). The factor sits in the gate, so the initial bytes are those of the other methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods import Found, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gate import Gate

VERSION = 1


@dataclass(frozen=True)
class Options:
    """Settings of the paper's small-scale experiments: SGD with momentum and weight decay on the scores."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    scaled: bool = True


def find(model: nn.Module, task: Task, options: Options) -> Found:
    """Search at `task.density` in every layer; scores start as U[-1, 1] / sqrt(fan_in), nn.Linear's own default."""
    import torch

    from crbg import attach, gate, rng
    from crbg.fit import fit
    from crbg.select import keep_count, layer_counts, select

    o, density = options, task.density
    if not density:
        raise CrbgError("edge_popup needs a density above 0: it keeps a share that you choose")

    def make(name: str, w: Tensor) -> Gate | None:
        draw = 2.0 * rng.uniform(w.numel(), task.seed, "score", name) - 1.0
        initial = torch.from_numpy(draw / math.sqrt(math.prod(w.shape[1:]))).to(torch.float32).reshape(w.shape)
        return gate.TopK(initial.to(w.device), keep_count(density, w.numel()), density**-0.5 if o.scaled else 1.0)

    with attach.frozen(model), attach.gated(model, make):
        found = attach.gates(model)
        sgd = torch.optim.SGD(
            [p for g in found.values() for p in g.parameters()],
            lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay,
        )  # fmt: skip
        history = fit(model, task.batches, sgd, task.epochs, task.seed, task.loss, checkpoint=task.checkpoint, clock=task.clock)
        scores = {n: g.scores().cpu() for n, g in found.items()}
    return Found(select(scores, layer_counts(scores, density)), scores=scores, history=history)
