"""Graph networks of torch_geometric on a small graph with masks."""

import pytest
import torch
from networks import randn

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.nn.models import GCN, GraphSAGE

from crbg import models
from crbg.data.sources import load


def masked(model, graph):
    return model(graph.x, graph.edge_index)[graph.train_mask], graph.y[graph.train_mask]


@pytest.mark.parametrize("kind", [GCN, GraphSAGE])
def test_node_classifier_with_a_mask(kind, search_as_a_client):
    torch.manual_seed(0)
    graph = Data(x=randn(20, 5), edge_index=torch.randint(0, 20, (2, 60)), y=torch.arange(20) % 3)
    graph.train_mask = torch.arange(20) < 12
    model = kind(5, hidden_channels=8, num_layers=2, out_channels=3)
    found = search_as_a_client(model, [graph, graph], forward=masked)
    assert found.mask.total >= 5 * 8 + 8 * 3
    assert found.report.ticket.labels == 12


@torch.no_grad()
@pytest.mark.parametrize("name", ["gcn-16", "gat-8x8"])
def test_the_graph_networks_of_crbg_equal_those_of_torch_geometric(name):
    toy = load("toy_graph")
    model, _ = models.initial(name, toy.in_shape, toy.classes, "kaiming_normal", 1.0, 0)
    features, adjacency = toy.train.common
    edges = adjacency.to_dense().fill_diagonal_(0).nonzero().T  # the layers of torch_geometric add self loops
    x = features.to_dense()
    for i, layer in enumerate(model.layers):
        if name == "gcn-16":
            twin = GCNConv(x.shape[1], len(layer.weight), bias=False)
            twin.lin.weight.copy_(layer.weight)
        else:
            heads, units = layer.target.weight.shape
            twin = GATConv(x.shape[1], units, heads, bias=False)
            twin.lin.weight.copy_(layer.project.weight)
            twin.att_dst.copy_(layer.target.weight)
            twin.att_src.copy_(layer.source.weight)
        x = twin(x, edges)
        if i == 0:
            x = x.relu() if name == "gcn-16" else torch.nn.functional.elu(x)
    assert x.std() > 0.05
    assert torch.allclose(model(*toy.test.batch(slice(None))[0]), x[200:], atol=1e-5)
