"""Graph networks of torch_geometric on a small graph with masks."""

import pytest
import torch
from networks import randn

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data
from torch_geometric.nn.models import GCN, GraphSAGE


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
