"""GCN and GAT: naive twins of the forward passes, gates, dropout, silent units, errors, and a short search."""

import math

import pytest
import torch
from networks import randn, random_mask
from torch import nn
from torch.nn import functional as F

from crbg import measure, methods, models, weights
from crbg.data.loader import BatchLoader
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.gates.selection import multiplied
from crbg.methods.contract import SearchTask
from crbg.models.gat import edge_softmax
from crbg.models.registry import problems
from crbg.search.run_search import run_search
from crbg.training.forward import outputs_and_labels

NAMES = ["gcn-16", "gcn-24-8", "gat-8x8", "gat-4x2-3x2"]


@pytest.fixture(scope="module")
def toy():
    return load("toy_graph")


def initial(name, toy, **options):
    return models.initial(name, toy.in_shape, toy.classes, "kaiming_normal", 1.0, 0, **options)[0]


def naive_gcn(model, x, a):
    *hidden, last = (layer.weight for layer in model.layers)
    for w in hidden:
        x = (a @ (x @ w.T)).clamp(min=0)
    return a @ (x @ last.T)


def naive_gat(model, x, a):
    """Compute one node, head and neighbour at a time."""
    for i, layer in enumerate(model.layers):
        (heads, units), outputs = layer.target.weight.shape, []
        h = (x @ layer.project.weight.T).reshape(-1, heads, units)
        for node in range(len(x)):
            near, of_heads = a[node].nonzero().flatten().tolist(), []
            for k in range(heads):
                mine = layer.target.weight[k] @ h[node, k]
                scores = [float(mine + layer.source.weight[k] @ h[j, k]) for j in near]
                powers = [math.exp(s if s > 0 else 0.2 * s) for s in scores]
                of_heads.append(sum(p / sum(powers) * h[j, k] for p, j in zip(powers, near, strict=True)))
            outputs.append(torch.cat(of_heads))
        x = torch.stack(outputs)
        if i < len(model.layers) - 1:
            x = torch.where(x > 0, x, x.exp() - 1)
    return x


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_forward_pass_equals_its_naive_twin(name, toy):
    model, features = initial(name, toy), randn(12, 32) * (randn(12, 32, seed=1) > 0)
    adjacency = randn(12, 12, seed=2) * (randn(12, 12, seed=3) > 0.5) + 2 * torch.eye(12)  # not symmetric
    adjacency[0, 1:] = adjacency[1:, 0] = 0  # a node without neighbours
    nodes = torch.tensor([3, 0, 11, 3])
    twin = (naive_gcn if name.startswith("gcn") else naive_gat)(model, features, adjacency)[nodes]
    sparse = adjacency.to_sparse_csr()
    assert twin.std() > 0.1
    assert torch.allclose(model(features.to_sparse_csr(), sparse, nodes), twin, atol=1e-5)
    assert torch.allclose(model(features, sparse, nodes), twin, atol=1e-5)


def test_the_softmax_over_edges_is_a_softmax_without_overflow_or_underflow():
    targets = torch.tensor([0, 2, 0, 2, 2, 3])
    scores = (20 * randn(6, 2) + torch.tensor([300.0, -300.0])).requires_grad_()
    shares = edge_softmax(scores, targets, 5)
    expected = torch.empty(6, 2)
    for node in targets.unique():
        expected[targets == node] = scores[targets == node].softmax(0)
    assert torch.allclose(shares, expected)
    (found,) = torch.autograd.grad((shares * randn(6, 2, seed=1)).sum(), scores, retain_graph=True)
    (twin,) = torch.autograd.grad((expected * randn(6, 2, seed=1)).sum(), scores)
    assert torch.allclose(found, twin, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_all_weights_carry_gates_and_have_a_gradient(name, toy):
    model = initial(name, toy)
    parts = {"gcn": ("",), "gat": (".project", ".target", ".source")}[name[:3]]
    assert list(weights(model)) == [f"layers.{i}{part}.weight" for i in range(name.count("-") + 1) for part in parts]
    assert len(weights(model)) == len(list(model.parameters()))
    x, y = toy.train.batch(slice(None))
    out = model(*x)
    assert out.shape == (80, 4)
    F.cross_entropy(out, y).backward()
    for n, w in weights(model).items():
        assert float(w.grad.abs().max()) > 0, n


def test_published_numbers_of_weights():
    count = {n: sum(p.numel() for p in models.build(n, (1433,), 7).parameters()) for n in ("gcn-16", "gat-8x8")}
    assert count == {"gcn-16": 1433 * 16 + 16 * 7, "gat-8x8": 1433 * 64 + 2 * 64 + 64 * 7 + 2 * 7}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_as_multipliers_equals_a_mask_on_the_weights(name, toy):
    model, twin = initial(name, toy), initial(name, toy)
    mask = random_mask(model, 0.5)
    for n, w in weights(twin).items():
        w *= mask[n]
    x, y = toy.test.batch(slice(None))
    assert torch.equal(outputs_and_labels(model, x, y, multiplied(model, mask))[0], twin(*x))
    assert measure.accuracy(model, toy.test.batches(), mask) == measure.accuracy(twin, toy.test.batches())


@torch.no_grad()
@pytest.mark.parametrize("name", ["gcn-16", "gat-8x8"])
def test_dropout_is_active_in_training_only(name, toy):
    model, plain = initial(name, toy, dropout=0.5), initial(name, toy)
    x, _ = toy.train.batch(slice(None))
    torch.manual_seed(0)
    assert not torch.equal(model.train()(*x), model(*x))
    assert torch.equal(model.eval()(*x), plain(*x))
    assert torch.equal(plain.train()(*x), plain.eval()(*x))


@torch.no_grad()
def test_dropout_of_sparse_features_scales_the_kept_ones(toy):
    features = toy.train.common[0]
    dropped = models.gcn.dropped(nn.Dropout(0.25), features)
    ratio = dropped.values() / features.values()
    assert ratio.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (ratio > 0).double().mean() == pytest.approx(0.75, abs=0.05)
    assert torch.equal(dropped.col_indices(), features.col_indices())


def test_silent_units_are_those_without_weights(toy):
    model = initial("gcn-16", toy)
    mask = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items()}
    before = measure.silent_units(model, toy.train.batches(), mask)["activations.0"]
    mask["layers.0.weight"][:5] = False
    assert before == 0
    assert measure.silent_units(model, toy.train.batches(), mask) == {"activations.0": 5}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gcn-16-0", {}, "model 'gcn-16-0' has a layer of width 0"),
        ("gat-8x0", {}, "model 'gat-8x0' has a layer of width 0"),
        ("gcn-16", {"dropout": 1.0}, r"model_args\.dropout of gcn-16 is 1; choose a rate"),
        ("gat-8x8", {"dropout": -0.1}, r"model_args\.dropout of gat-8x8 is -0\.1"),
        ("gcn", {}, "unknown model 'gcn'"),
        ("gat-8", {}, "unknown model 'gat-8'"),
        ("gcn-16", {"heads": 2}, "does not take these model_args"),
    ],
)
def test_what_cannot_be_built_says_why(name, options, message):
    with pytest.raises(CrbgError, match=message):
        models.build(name, (32,), 4, **options)


def test_graph_networks_take_graphs_only():
    for name in ("gcn-16", "gat-8x8"):
        assert not list(problems(name, {"dropout": 0.5}, kind="graph"))
        assert next(problems(name, {}, kind="images")).startswith(f"{name} takes graph, not images")


@pytest.mark.parametrize("name", ["gcn-64", "gat-8x8"])
def test_a_search_finds_a_ticket_that_is_better_than_chance(name, toy):
    model, roles = models.initial(name, toy.in_shape, toy.classes, "kaiming_normal", 1.0, 0)
    options = {"noise": 0.0, "firmness": 0.0, "polish": 0.5, "lr": 0.1, "temperature": 0.0, "spread": 0.3}
    task = SearchTask(BatchLoader(toy.train, 80, 0), 0.2, 30, 0, toy.loss)
    found = run_search(model, task, methods.get("crbg"), methods.options("crbg", options), roles)
    assert found.mask.density == pytest.approx(0.2, rel=0.03)
    assert measure.accuracy(model, toy.validation.batches(), found.mask) > 55, "chance is 25 %"
    assert measure.accuracy(model, toy.validation.batches()) < 50
