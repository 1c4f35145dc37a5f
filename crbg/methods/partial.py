"""Partial search (Otsuka et al. 2025): edge-popup on a random part of the weights, the rest at random.

Which weights the search leaves alone follows from the seed, so the file of the ticket needs bits for the searched
weights only. The result is a strong ticket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods import edge_popup
from crbg.methods._scored import required_density, tensor_like
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("straight-through, top-k", "exact, per layer")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of SGD with momentum and weight decay on the scores, as in edge-popup, and of the random part.

    Attributes:
        scaled: Multiply the weights by sqrt(1 / density).
        fixed: Share of each layer's weights that is not searched.
        locked: Density of this part, as a multiple of the ticket's density: 1 for the same density, 0 if all of its
            weights are pruned.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scaled: bool = True
    fixed: float = share(0.7)
    locked: float = share(1.0)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a strong ticket with `task.density` in every layer.

    Raises:
        CrbgError: the task has no density.
    """
    import torch

    from crbg import rng
    from crbg.gates.scores import Partly
    from crbg.gates.selection import candidate_mask
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count

    o, density = options, required_density(task, "partial")
    there = candidate_mask(model)
    searched: dict[str, Tensor] = {}

    def make(name: str, w: Tensor) -> Gate:
        initial = edge_popup.initial_scores(model, task.seed, name, w)
        chance = tensor_like(w, rng.uniform(w.numel(), task.seed, "fixed", name))[there[name]]
        order = chance.argsort(stable=True)
        fixed = order[: keep_count(o.fixed, len(order))]
        locked = fixed[: keep_count(density * o.locked, len(fixed))]
        kind = torch.zeros(len(order), dtype=torch.int8, device=w.device)
        kind[fixed], kind[locked] = -1, 1
        full = torch.full(w.shape, -1, dtype=torch.int8, device=w.device).masked_scatter(there[name], kind)
        searched[name] = (full == 0).cpu()
        return Partly(initial, keep_count(density, len(order)), density**-0.5 if o.scaled else 1.0, full)

    found = edge_popup.search_layers(model, task, make, o)
    found.searched = Mask(searched)
    return found
