"""Graph convolutional networks (Kipf and Welling, 2017), named by their hidden widths: `gcn-16`, `gcn-64-64`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.models._widths import check_widths

NAMES = r"gcn(-\d+)+"
DATA = ("graph",)


class GCN(nn.Module):
    """Graph convolutions adjacency @ (x @ W) with ReLU between them; all weights W carry gates.

    Args:
        widths: Number of features, hidden widths and number of classes.
        dropout: Dropout rate of the inputs of each layer.
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairs)
        self.activations = nn.ModuleList(nn.ReLU() for _ in pairs[1:])
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the logits of the nodes, (len(nodes), classes).

        Args:
            features: Features of all nodes, (N, F), dense or sparse CSR.
            adjacency: Normalised adjacency, (N, N), dense or sparse CSR.
            nodes: Nodes to classify, int64.
        """
        first, *others = self.layers
        x: Tensor = adjacency @ first(dropped(self.dropout, features))
        for activation, layer in zip(self.activations, others, strict=True):
            x = adjacency @ layer(self.dropout(activation(x)))
        return x[nodes]


def dropped(dropout: nn.Dropout, x: Tensor) -> Tensor:
    """Apply dropout to a matrix, dense or sparse CSR; in a sparse one, to its stored values."""
    if x.layout == torch.strided:
        return dropout(x)  # type: ignore[no-any-return]
    values = dropout(x.values())
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


def build(name: str, in_shape: tuple[int, ...], classes: int, dropout: float = 0.0) -> nn.Module:
    """Build the network for nodes with features of shape (F,); its layers are called layers.0, layers.1, ...

    Raises:
        CrbgError: a width is 0, or `dropout` is no rate.
    """
    widths = [*in_shape, *map(int, name.split("-")[1:]), classes]
    check(name, widths, dropout)
    return GCN(widths, dropout)


def check(name: str, widths: Sequence[int], dropout: float) -> None:
    """Check the widths and the dropout rate of a graph network.

    Raises:
        CrbgError: a width is 0, or `dropout` is no rate.
    """
    check_widths(name, widths)
    if not 0.0 <= dropout < 1.0:
        raise CrbgError(f"model_args.dropout of {name} is {dropout:g}; choose a rate of at least 0 and below 1")
