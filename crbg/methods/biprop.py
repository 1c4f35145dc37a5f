"""Biprop (multi-prize tickets, Diffenderfer & Kailkhura 2021): edge-popup on binary weights, alpha * sign(W) per layer.

For signed-constant weights, alpha * sign(W) equals W. The search is then edge-popup without scaling, and it finds a
strong ticket. Other initial distributions are refused: binarisation would change the weights, and the result would not
be a subnetwork of the initial network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.methods import edge_popup
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
TRAITS = Traits("straight-through, top-k", "exact, global or per layer")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """Options of SGD on the scores, as in edge-popup.

    Attributes:
        scope: `global` for one score threshold over all layers, as for the paper's sparse networks, or `layer` for one
            per layer.
        reach: Fraction of the search over which the density decreases from 1 to its target, with `scope: global`.
    """

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scope: str = option("global", choices=edge_popup.SCOPES)
    reach: float = share(0.1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search for a strong ticket with `task.density`, reached globally or in every layer.

    Raises:
        CrbgError: the weights of a layer differ in magnitude.
    """
    from crbg.gates.selection import candidate_mask, weights

    there = candidate_mask(model)
    for name, w in weights(model).items():
        sizes = w.detach().abs()[there[name]]
        if not bool((sizes == sizes.max()).all()):
            raise CrbgError(
                f"biprop needs weights of one magnitude in each layer, w = c or -c, but those of {name!r} differ; draw "
                'such weights with `crbg.initialise(model, "signed_constant", scale=1.0, seed=0)` (in a configuration: '
                "`init: signed_constant`), leave the layer out with `where`, or use the method edge_popup"
            )
    return edge_popup.find(model, task, edge_popup.Options(**asdict(options), scaled=False))
