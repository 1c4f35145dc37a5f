"""Multicoated supermasks (Okoshi et al. 2022): edge-popup with nested masks, which multiply a weight by 0, 1, ..., N.

Coat n of N keeps the weights with the largest |s| in every layer, a fraction density * (N - n) / N of them for
n = 0, ..., N - 1, so the densities are evenly spaced. The sum of the coats multiplies the initial weights. The result
is not a strong ticket, because the integer factors are searched too; tables list it separately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.methods import edge_popup
from crbg.methods._scored import required_density
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("straight-through, top-k", "exact, per layer", "multiplied by integers")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of SGD with momentum and weight decay on the scores, as in edge-popup.

    Attributes:
        scaled: Multiply the weights by sqrt(1 / density), as for edge-popup.
        coats: Number of nested masks; with 1, the method is edge-popup.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scaled: bool = True
    coats: int = option(3, least=1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for masks with `task.density` in every layer; the model keeps its weights times the number of coats.

    Raises:
        CrbgError: the task has no density.
    """
    import torch

    from crbg.gates import attach
    from crbg.gates.scores import Coated
    from crbg.gates.selection import candidate_mask
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, layer_counts, select

    o, density = options, required_density(task, "multicoated")
    parts = [density * (o.coats - n) / o.coats for n in range(o.coats)]
    available = Mask(candidate_mask(model)).layer_kept()

    def make(name: str, w: Tensor) -> Gate:
        initial = edge_popup.initial_scores(model, task.seed, name, w)
        sizes = [keep_count(part, available[name]) for part in parts]
        return Coated(initial, sizes, density**-0.5 if o.scaled else 1.0)

    found = edge_popup.search_layers(model, task, make, o)
    if o.coats > 1:
        more = [select(found.scores, layer_counts(found.scores, part)) for part in parts[1:]]
        with torch.no_grad():
            for name, w in attach.weights(model).items():
                w.mul_(1 + sum(coat[name].to(w) for coat in more))  # pruned weights keep their value
        found.changed = dict.fromkeys(found.mask, "multiplied")
    return found
