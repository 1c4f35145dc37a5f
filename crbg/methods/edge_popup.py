"""Edge-popup (Ramanujan et al. 2020): scores by straight-through gradients, the top k of |s| of every layer kept.

With `scope: global` one threshold serves all layers, and the share kept falls to the density asked for over the first
`reach` of the search (as in Diffenderfer & Kailkhura 2021): otherwise whole layers close at the first step.

With `scaled` the weights grow by sqrt(1 / k) with k the share kept, as the paper means it (its code uses the share
removed, which agrees only at k = 1/2). The factor sits in the gate, so the initial bytes are those of the other
methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods._ranked import asked, like, ranked
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate
    from crbg.gates.scores import TopK
    from crbg.training.hooks import SearchHook

VERSION = 1
SCOPES = ("layer", "global")
TRAITS = Traits("straight-through, top k", "exact by layer, or of all together")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Settings of the paper's small-scale experiments: SGD with momentum and weight decay on the scores.

    scope: layer or global.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scaled: bool = True
    scope: str = option("layer", choices=SCOPES)
    reach: float = share(0.1)


def find(
    model: nn.Module, task: SearchTask, options: Options, hook: Callable[[list[TopK]], SearchHook] | None = None
) -> SearchResult:
    """Search at `task.density`; scores start as U[-1, 1] / sqrt(fan_in), nn.Linear's own default.

    `hook` steers a search per layer.
    """
    import torch

    from crbg import rng
    from crbg.gates.scores import TopK
    from crbg.masks.select import keep_count, layer_counts
    from crbg.search.gradbalance import OneThreshold
    from crbg.training.hooks import SearchHook

    o, density = options, asked(task, "edge_popup")
    if o.scope not in ("layer", "global"):
        raise CrbgError(f"edge_popup.scope is layer or global, not {o.scope!r}")

    def make(name: str, w: Tensor) -> Gate:
        draw = 2.0 * rng.uniform(w.numel(), task.seed, "score", name) - 1.0
        return TopK(
            like(w, draw / math.sqrt(math.prod(w.shape[1:]))),
            keep_count(density, w.numel()),
            density**-0.5 if o.scaled else 1.0,
        )

    def learn(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        popup = [g for g in gates if isinstance(g, TopK)]
        sgd = torch.optim.SGD([g.score for g in popup], lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
        if o.scope == "global":
            return sgd, OneThreshold(popup, density, o.reach)
        return sgd, hook(popup) if hook else SearchHook()

    counts = None if o.scope == "global" else lambda scores: layer_counts(scores, density)
    return ranked(model, task, make, learn, counts=counts)
