"""Edge-popup (Ramanujan et al. 2020): train scores with straight-through gradients, keep the top k of |s| per layer.

With `scope: global`, one threshold applies to all layers, and the density decreases from 1 to its target over the first
fraction `reach` of the search (as in Diffenderfer & Kailkhura 2021). Without this decrease, entire layers would lose
all their weights in the first step.

With `scaled`, the weights are multiplied by sqrt(1 / density), as the paper states. The paper's code uses the
fraction of removed weights instead of the density; the two agree only at density 1/2. The factor is part of the gate,
so the initial weights are the same as for the other methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from crbg.methods._scored import changed_since, copied_weights, required_density, search_and_select, tensor_like
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from crbg.gates.attach import MakeGate
    from crbg.gates.base import Gate
    from crbg.gates.scores import TopK
    from crbg.training.hooks import SearchHook

VERSION = 1
SCOPES = ("layer", "global")
TRAITS = Traits("straight-through, top-k", "exact, per layer or global")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of SGD with momentum and weight decay on the scores, as in the paper's small-scale experiments.

    Attributes:
        scaled: Multiply the weights by sqrt(1 / density).
        scope: `layer` for the same density in every layer, or `global` for one threshold over all layers.
        reach: Fraction of the search over which the density decreases from 1 to its target, with `scope: global`.
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
    """Search for a ticket with `task.density`; initial scores are U[-1, 1] / sqrt(fan_in), as in `nn.Linear`.

    Args:
        model: A network without gates; its weights do not change.
        task: Batches, density, epochs, seed and loss.
        options: Settings of the method.
        hook: Returns a search hook for the gates, used with `scope: layer` only; IteRand redraws weights with it.

    Raises:
        CrbgError: the task has no density.
    """
    from crbg.gates.scores import TopK
    from crbg.gates.selection import candidate_mask
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, layer_counts
    from crbg.search.gradbalance import GlobalThreshold
    from crbg.training.hooks import SearchHook

    o, density = options, required_density(task, "edge_popup")

    available = Mask(candidate_mask(model)).layer_kept()

    def make(name: str, w: Tensor) -> Gate:
        initial = initial_scores(model, task.seed, name, w)
        return TopK(initial, keep_count(density, available[name]), density**-0.5 if o.scaled else 1.0)

    def steer(gates: list[Gate]) -> tuple[torch.optim.Optimizer, SearchHook]:
        popup = [g for g in gates if isinstance(g, TopK)]
        sgd = optimiser(popup, o)
        if o.scope == "global":
            return sgd, GlobalThreshold(popup, density, o.reach)
        return sgd, hook(popup) if hook else SearchHook()

    counts = None if o.scope == "global" else lambda scores: layer_counts(scores, density)
    return search_and_select(model, task, make, steer, counts=counts)


def find_while_changing(
    model: nn.Module,
    task: SearchTask,
    options: Any,
    hook: Callable[[Mapping[str, Tensor], list[TopK]], SearchHook],
    role: str,
) -> SearchResult:
    """Search with `scope: layer` while a hook changes weights, which remain in the model.

    Args:
        model: A network without gates.
        task: Batches, density, epochs, seed and loss.
        options: Options of edge-popup, and others, which are ignored.
        hook: Returns the hook for the raw weights and their gates.
        role: Role of the weights that changed.
    """
    from crbg.gates import attach

    before = copied_weights(model)
    popup = Options(**{f.name: getattr(options, f.name) for f in fields(Options) if hasattr(options, f.name)})
    found = find(model, task, popup, lambda gates: hook(attach.weights(model), gates))
    found.changed = changed_since(before, model, role)
    return found


def search_layers(model: nn.Module, task: SearchTask, make: MakeGate, options: Any) -> SearchResult:
    """Train the scores of gates like edge-popup's, then keep the same fraction of the weights of every layer."""
    from crbg.masks.select import layer_counts
    from crbg.training.hooks import SearchHook

    density = required_density(task, "a search")
    return search_and_select(
        model,
        task,
        make,
        lambda gates: (optimiser(gates, options), SearchHook()),
        counts=lambda scores: layer_counts(scores, density),
    )


def initial_scores(model: nn.Module, seed: int, name: str, w: Tensor) -> Tensor:
    """Return scores U[-1, 1] / sqrt(fan_in), of w's shape, which depend on the seed and the tensor's name only."""
    from crbg import rng
    from crbg.gates.layers import fan_in

    return tensor_like(w, (2.0 * rng.uniform(w.numel(), seed, "score", name) - 1.0) / math.sqrt(fan_in(model, name, w)))


def optimiser(gates: Sequence[Gate], options: Any) -> torch.optim.Optimizer:
    """Return SGD on the scores, with the learning rate, momentum and weight decay of the options."""
    import torch

    from crbg.gates.scores import TopK

    o, scores = options, [g.score for g in gates if isinstance(g, TopK)]
    return torch.optim.SGD(scores, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
