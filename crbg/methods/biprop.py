"""Biprop (multi-prize tickets, Diffenderfer & Kailkhura 2021): edge-popup on binary weights alpha * sign(W), alpha one gain a layer.

On signed-constant weights alpha * sign(W) is W itself, so the search is edge-popup without scaling, and its ticket a
strong one. On other laws binarising would change the weights, and what was found would not be a ticket of the network
that was drawn; they are refused.
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
TRAITS = Traits("straight-through, top k", "exact of all together, or by layer")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options:
    """SGD as in edge-popup. scope: one threshold for all layers, as in the paper's sparse networks, or one a layer."""

    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-4, least=0)
    scope: str = option("global", choices=edge_popup.SCOPES)
    reach: float = share(0.1)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search at `task.density` over all layers, or in each."""
    from crbg.gates.attach import weights

    for name, w in weights(model).items():
        if not bool((w.abs() == w.abs().max()).all()):
            raise CrbgError(
                f"biprop keeps signs only, and {name!r} has weights of different size: use `init: signed_constant`"
            )
    return edge_popup.find(model, task, edge_popup.Options(**asdict(options), scaled=False))
