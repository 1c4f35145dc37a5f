"""Graph attention networks (Veličković et al., 2018), named by units x heads of the hidden layers: `gat-8x8`.

`crbg.measure.flops` omits the sums over edges.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crbg.errors import CrbgError
from crbg.models.gcn import check, dropped

NAMES = r"gat(-\d+x\d+)+"
DATA = ("graph",)
SLOPE = 0.2  # of the leaky ReLU of the attention scores


class Attention(nn.Module):
    """Attention of each node over its neighbours. The projection and both attention vectors carry gates.

    Head k weights the neighbour j of node i by the softmax over j of LeakyReLU(a_k . h_ik + b_k . h_jk), where h_ik is
    the projection of node i. The vectors a_k are the rows of `target.weight`, the vectors b_k those of `source.weight`.

    Args:
        inputs: Number of features of a node.
        units: Number of units of a head.
        heads: Number of heads; their outputs are concatenated.
        dropout: Dropout rate of the features and of the attention weights.
    """

    def __init__(self, inputs: int, units: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = heads, units
        self.project = nn.Linear(inputs, heads * units, bias=False)
        self.target = nn.Linear(units, heads, bias=False)
        self.source = nn.Linear(units, heads, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Return the new features of all nodes, (N, heads * units).

        Args:
            x: Features of all nodes, (N, inputs), dense or sparse CSR.
            adjacency: Sparse CSR, (N, N). Node i attends to the stored columns of row i; the values are not used.
        """
        if adjacency.layout != torch.sparse_csr:
            raise CrbgError("graph attention needs a sparse CSR adjacency; use `adjacency.to_sparse_csr()`")
        starts, sources = adjacency.crow_indices(), adjacency.col_indices()
        targets = torch.repeat_interleave(torch.arange(len(x), device=sources.device), starts.diff())
        h = self.project(dropped(self.dropout, x)).unflatten(1, self.shape)
        mine, others = (torch.einsum("nhu,hu->nh", h, layer.weight) for layer in (self.target, self.source))
        scores = F.leaky_relu(mine.index_select(0, targets) + others.index_select(0, sources), SLOPE)
        shares = self.dropout(edge_softmax(scores, targets, len(x)))
        return torch.zeros_like(h).index_add(0, targets, shares[..., None] * h.index_select(0, sources)).flatten(1)


def edge_softmax(scores: Tensor, targets: Tensor, n: int) -> Tensor:
    """Return the softmax over all edges with the same target.

    Args:
        scores: One score for each edge and head, (E, heads).
        targets: Target node of each edge, int64 (E,).
        n: Number of nodes.
    """
    # Any constant per target gives the same softmax; the maximum avoids an overflow and needs no gradient.
    index = targets[:, None].expand_as(scores)
    highest = scores.new_zeros(n, scores.shape[1]).scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    powers = (scores - highest[targets]).exp()
    sums = torch.zeros_like(highest).index_add(0, targets, powers)
    return powers / sums.index_select(0, targets)


class GAT(nn.Module):
    """Layers of attention with ELU between them; the last layer has one head."""

    def __init__(self, inputs: int, shapes: list[tuple[int, int]], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [inputs, *(units * heads for units, heads in shapes)]
        self.layers = nn.ModuleList(
            Attention(width, units, heads, dropout) for width, (units, heads) in zip(widths, shapes, strict=False)
        )
        self.activations = nn.ModuleList(nn.ELU() for _ in shapes[1:])

    def forward(self, features: Tensor, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the logits of the nodes, (len(nodes), classes).

        Args:
            features: Features of all nodes, (N, F), dense or sparse CSR.
            adjacency: A sparse CSR matrix with the neighbours of each node, (N, N).
            nodes: Nodes to classify, int64.
        """
        first, *others = self.layers
        x: Tensor = first(features, adjacency)
        for activation, layer in zip(self.activations, others, strict=True):
            x = layer(activation(x), adjacency)
        return x[nodes]


def build(name: str, in_shape: tuple[int, ...], classes: int, dropout: float = 0.0) -> nn.Module:
    """Build the network for nodes with features of shape (F,); its layers are called layers.0, layers.1, ...

    Raises:
        CrbgError: a layer has no unit or no head, or `dropout` is no rate.
    """
    hidden = [(int(units), int(heads)) for units, heads in (part.split("x") for part in name.split("-")[1:])]
    check(name, list(itertools.chain(in_shape, *hidden)), dropout)
    return GAT(in_shape[0], [*hidden, (classes, 1)], dropout)
