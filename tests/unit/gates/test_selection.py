"""Which weights are chosen: patterns, lists, functions; tied weights; weights of other code; zeros."""

import copy

import pytest
import torch
from simple_gates import half_open
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from crbg import find_ticket
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, bake, detach, gated, only_candidates, sampling, weights
from crbg.gates.base import Fixed
from crbg.gates.selection import Selection, choosing
from crbg.models.initial_weights import initialise


class Text(nn.Module):
    """An embedding, a body and a head; the head may share its weight with the embedding."""

    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(8))
        self.table, self.body, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.body(self.table(tokens) * self.scale).relu())


TOKENS = torch.randint(12, (24,), generator=torch.Generator().manual_seed(0))
DATA = (TOKENS, TOKENS.flip(0))


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, ["body.weight", "head.weight"]),
        ("body.*", ["body.weight"]),
        (["head.weight", "body.weight"], ["body.weight", "head.weight"]),
        (("head.*",), ["head.weight"]),
        (lambda name, w: w.shape[0] == 12, ["head.weight"]),
        ("table.weight", ["table.weight"]),
        (["scale", "body.*"], ["scale", "body.weight"]),
        (r"(?!body).*", ["head.weight"]),
    ],
)
def test_where_chooses_weights(where, names):
    model = attach(Text(), half_open, where)
    assert sorted(attached_gates(model)) == sorted(names)
    assert {n for n, p in weights(model).items()} == {*names, "body.weight", "head.weight"}
    with sampling(model):
        model(TOKENS).sum().backward()
    assert all(g.mu.grad is not None for g in attached_gates(model).values())
    before = list(Text().state_dict())
    assert list(detach(model).state_dict()) == before
    with gated(model, half_open, where):
        assert sorted(attached_gates(model)) == sorted(names)
    assert not attached_gates(model)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("bodi.weight", "no weight matches 'bodi.weight': did you mean 'body.weight'"),
        (["body.*", "none"], "no weight matches 'none'"),
        ("table.*", "'table.weight' has no gates by default; give its full name"),
        ("(", "neither the name of a weight nor a regular expression"),
        (lambda name, w: False, "where chooses no weight; the weights that can be gated by default are"),
        ([], "where chooses no weight"),
    ],
)
def test_a_choice_of_nothing_is_refused(where, message):
    model = Text()
    with pytest.raises(CrbgError) as error:
        attach(model, half_open, where)
    assert message in str(error.value)
    with pytest.raises(CrbgError) as error:
        find_ticket(model, DATA, 0.5, epochs=1, where=where)
    assert message in str(error.value)
    assert not hasattr(model, "_crbg_choice")


METHODS = {
    "biprop": {},
    "concrete": {},
    "crbg": {},
    "cts": {"search": 1, "lr": 0.01, "objective": "loss"},
    "edge_popup": {},
    "gem_miner": {"periods": 1},
    "hard_concrete": {},
    "imp": {"lr": 0.01, "levels": 1},
    "iterand": {"period": 2},
    "random": {},
    "saliency": {"lr": 0.01},
    "sparse_vd": {},
    "stg": {},
    "supermask": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_the_chosen_weights_only(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    if method == "biprop":
        with torch.no_grad():
            model[2].weight.copy_(model[2].weight.sign())
    x = torch.randn(24, 6)
    density = None if method in ("sparse_vd", "stg") else 0.5
    found = find_ticket(
        model, (x, torch.arange(24) % 3), density, method, epochs=1, batch=12, where="2.*", **METHODS[method]
    )
    assert list(found.mask) == ["2.weight"]
    if density:
        assert found.mask.kept == pytest.approx(32, abs=1)
    assert not hasattr(model, "_crbg_choice")


@pytest.mark.parametrize("method", ["crbg", "edge_popup", "imp", "saliency"])
def test_a_parameter_named_in_full_is_searched(method):
    options = {"lr": 0.01} if method in ("imp", "saliency") else {}
    model = Text()
    chosen = ["table.weight", "scale", "body.*"]
    found = find_ticket(model, DATA, 0.5, method, epochs=1, batch=12, where=chosen, **options)
    assert set(found.mask) == {"table.weight", "scale", "body.weight"}
    assert found.mask.kept == pytest.approx(84, rel=0.02)
    found.apply(model)
    assert bool((model.table.weight[~found.mask["table.weight"]] == 0).all())


def test_a_full_name_does_not_choose_a_weight_that_its_dots_match():
    inner = nn.ModuleDict({"b": nn.Linear(2, 2)})
    model = nn.ModuleDict({"a_b": nn.Linear(2, 2), "a": inner})
    assert list(weights(model)) == ["a_b.weight", "a.b.weight"]
    assert list(attached_gates(attach(model, half_open, "a.b.weight"))) == ["a.b.weight"]
    detach(model)
    with choosing(model, Selection("a.b.weight")):
        assert list(attached_gates(attach(model, half_open))) == ["a.b.weight"]
    detach(model)
    assert list(attached_gates(attach(model, half_open, "a.b.weigh."))) == ["a_b.weight", "a.b.weight"]


def test_inside_a_choice_the_outer_one_stays():
    model = Text()
    with choosing(model, Selection("head.*")):
        with choosing(model, Selection()):
            assert list(weights(model)) == ["head.weight"]
        assert list(weights(model)) == ["head.weight"]
    assert not hasattr(model, "_crbg_choice")


def test_the_choice_of_a_search_survives_a_copy_and_ends_with_it():
    model = Text()
    with choosing(model, Selection("head.*")):
        assert list(weights(copy.deepcopy(model))) == ["head.weight"]
        assert list(attached_gates(attach(model, half_open))) == ["head.weight"]
        detach(model)
    assert list(weights(model)) == ["body.weight", "head.weight"]


def test_frozen_weights_are_gated_and_can_be_left_out():
    model = Text()
    model.body.requires_grad_(False)
    found = find_ticket(model, DATA, 0.5, epochs=1, batch=12)
    assert set(found.mask) == {"body.weight", "head.weight"}
    found = find_ticket(model, DATA, 0.5, epochs=1, batch=12, where=lambda name, w: w.requires_grad)
    assert set(found.mask) == {"head.weight"}


# tied weights ---------------------------------------------------------------------------------------------------------


def test_tied_weights_are_refused_only_if_they_would_get_a_gate():
    with pytest.raises(CrbgError, match=r"'head.weight' and 'table.weight' share one weight.*tied=\"share\".*where"):
        attach(Text(tied=True), half_open)
    model = Text(tied=True)
    with pytest.raises(CrbgError, match="share one weight"):
        find_ticket(model, DATA, 0.5, epochs=1)
    assert set(find_ticket(model, DATA, 0.5, epochs=1, batch=12, where="body.*").mask) == {"body.weight"}
    assert model.head.weight is model.table.weight
    with pytest.raises(CrbgError, match=r"unknown value 'both' of `tied`"):
        attach(Text(), half_open, tied="both")


def test_a_tied_weight_for_which_no_gate_is_built_is_not_refused():
    model = attach(Text(tied=True), lambda n, w: half_open(n, w) if n == "body.weight" else None)
    assert list(attached_gates(model)) == ["body.weight"]


def test_initial_weights_of_tied_layers_are_ambiguous():
    with pytest.raises(CrbgError, match=r"table\.weight and head\.weight share one weight"):
        initialise(Text(tied=True), "uniform", 1.0, 0)


def test_tied_weights_can_share_one_gate():
    model = attach(Text(tied=True), half_open, tied="share")
    gates = attached_gates(model)
    assert list(gates) == ["body.weight", "head.weight"]
    with sampling(model):
        torch.manual_seed(0)
        model(TOKENS).square().sum().backward()
        torch.manual_seed(0)
        z = {n: (g.mu + g.noise * torch.randn_like(g.mu)).clamp(0, 1) for n, g in list(gates.items())[::-1]}
    twin = Text(tied=True)
    with torch.no_grad():
        twin.head.weight.mul_(z["head.weight"])
        twin.body.weight.mul_(z["body.weight"])
        with sampling(model):
            torch.manual_seed(0)
            assert torch.equal(model(TOKENS), twin(TOKENS)), "both layers see one sample"
    mask = {n: torch.rand_like(w) < 0.5 for n, w in weights(model).items()}
    bake(model, mask)
    assert model.head.weight is model.table.weight
    assert bool((model.table.weight[~mask["head.weight"]] == 0).all())


@pytest.mark.parametrize("method", ["crbg", "imp", "saliency", "cts"])
def test_methods_search_tied_weights_once(method):
    options = {"crbg": {}, "imp": {"lr": 0.01}, "saliency": {"lr": 0.01}, "cts": {"lr": 0.01, "search": 1}}[method]
    model = Text(tied=True)
    found = find_ticket(model, DATA, 0.5, method, epochs=1, batch=12, tied="share", **options)
    assert set(found.mask) == {"body.weight", "head.weight"}
    assert model.head.weight is model.table.weight


# weights of other code ------------------------------------------------------------------------------------------------

FOREIGN = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


def normed(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    FOREIGN[kind](model[0])
    return model


def tensors(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_function_is_given_a_tensor_of_the_shape_of_the_weight(kind):
    shapes = {}
    attach(normed(kind), half_open, lambda name, w: shapes.setdefault(name, tuple(w.shape)) == (3, 8))
    assert shapes == {"0.weight": (8, 6), "2.weight": (3, 8)}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("method", ["crbg", "edge_popup", "imp"])
def test_weights_that_other_code_computes_are_refused_or_left_out(kind, method):
    model = normed(kind)
    before, data = tensors(model), (torch.randn(24, 6), torch.arange(24) % 3)
    options = {"lr": 0.01} if method == "imp" else {}
    with pytest.raises(CrbgError, match=r"'0.weight' of Linear is computed by .*where") as error:
        find_ticket(model, data, 0.5, method, epochs=1, batch=12, **options)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    found = find_ticket(
        model, data, 0.5, method, epochs=1, batch=12, where=lambda name, w: name != "0.weight", **options
    )
    assert list(found.mask) == ["2.weight"]
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {n for n in before if not torch.equal(after[n], before[n])}
    # Training also moves the vectors of spectral_norm.
    assert {n for n in changed if not n.endswith(("_u", "_v")) or method != "imp"} <= set(found.changed)
    assert parametrize.is_parametrized(model[0]) == ("old" not in kind and kind != "pruning")
    remedy = str(error.value).split("`")[1]
    eval(remedy, {"torch": torch, "layer": model[0]})
    assert list(weights(model)) == ["0.weight", "2.weight"]


def test_a_parametrisation_on_top_of_a_gate_survives():
    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    model = attach(nn.Sequential(nn.Linear(3, 3)), lambda n, w: Fixed(torch.zeros_like(w)))
    parametrize.register_parametrization(model[0], "weight", Twice())
    raw = weights(model)["0.weight"].detach().clone()
    detach(model)
    assert not attached_gates(model)
    assert torch.equal(model[0].weight, 2 * raw)


# weights that are exactly zero ----------------------------------------------------------------------------------------


def pruned():
    """Return a network in which half of the weights are zero, and nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    layers = [(model[i], "weight") for i in (0, 2, 4)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.5)
    for layer, name in layers:
        prune.remove(layer, name)
    return model


ZEROS = METHODS | {
    "crbg": {"pretrain": 1, "finetune": 1},
    "imp": {"lr": 0.01, "rewind": 1},
    "saliency": {"lr": 0.01, "score": "synflow", "rounds": 3},
}
del ZEROS["biprop"]


@pytest.mark.parametrize("method", ZEROS)
def test_weights_that_are_zero_are_never_kept_and_stay_zero(method):
    model, density = pruned(), None if method in ("sparse_vd", "stg") else 0.5
    zero = {n: p.detach() == 0 for n, p in model.named_parameters()}
    data = (torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)
    found = find_ticket(model, data, density, method, epochs=3, batch=12, **ZEROS[method])
    assert not any(bool((zero[n] & kept).any()) for n, kept in found.mask.items())
    left = sum(int((~zero[n]).sum()) for n in found.mask)
    if density:
        assert found.mask.kept == pytest.approx(0.5 * left, abs=2)
        assert not found.scores or all(bool(found.scores[n][zero[n]].isneginf().all()) for n in found.mask)
    assert all(bool((model.get_parameter(n)[zero[n]] == 0).all()) for n in found.mask)


def test_only_tensors_with_zeros_are_held_while_weights_are_trained():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0] = 0.0
    with choosing(model, Selection()), only_candidates(model):
        assert list(attached_gates(model)) == ["1.weight"]
        model(torch.ones(1, 4)).sum().backward()
        assert model[1].parametrizations.weight.original.grad[:2, 0].ne(0).tolist() == [False, True]


@pytest.mark.parametrize("control", ["shuffle", "invert", "random"])
def test_controls_keep_no_weight_that_is_zero(control):
    model = pruned()
    zero = {n: p.detach() == 0 for n, p in model.named_parameters()}
    data = (torch.randn(24, 6), torch.arange(24) % 3)
    found = find_ticket(model, data, 0.4, "saliency", epochs=1, batch=12, lr=0.01, control=control)
    assert not any(bool((zero[n] & kept).any()) for n, kept in found.mask.items())
    assert found.mask.kept == pytest.approx(0.4 * sum(int((~zero[n]).sum()) for n in found.mask), abs=2)


def test_unit_gates_keep_no_weight_that_is_zero():
    model = pruned()
    zero = {n: p.detach() == 0 for n, p in model.named_parameters()}
    data = (torch.randn(24, 6), torch.arange(24) % 3)
    found = find_ticket(model, data, 0.5, epochs=2, batch=12, granularity="unit")
    assert not any(bool((zero[n] & kept).any()) for n, kept in found.mask.items())
    assert found.mask.kept > 0


def test_biprop_considers_only_weights_that_are_not_zero():
    model = pruned()
    with pytest.raises(CrbgError, match=r"one magnitude in each layer.*signed_constant.*where"):
        find_ticket(model, (torch.randn(24, 6), torch.arange(24) % 3), 0.5, "biprop", epochs=1)
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.sign_()
    found = find_ticket(model, (torch.randn(24, 6), torch.arange(24) % 3), 0.5, "biprop", epochs=1, batch=12)
    assert not any(bool(((model.get_parameter(n) == 0) & kept).any()) for n, kept in found.mask.items())


def test_a_tensor_of_zeros_is_left_out():
    model = pruned()
    nn.init.zeros_(model[2].weight)
    data = (torch.randn(24, 6), torch.arange(24) % 3)
    with pytest.warns(UserWarning, match=r"no gates on 2\.weight: all weights") as seen:
        found = find_ticket(model, data, 0.5, epochs=1, batch=12)
    assert {w.filename for w in seen if "no gates on" in str(w.message)} == {__file__}
    assert set(found.mask) == {"0.weight", "4.weight"}
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[4].weight)
    with pytest.raises(CrbgError, match="all weights that could carry gates are exactly zero"):
        find_ticket(model, data, 0.5, epochs=1, batch=12)


def test_without_a_search_of_the_library_zeros_are_weights_like_others():
    gate = attached_gates(attach(pruned(), half_open))["0.weight"]
    assert gate.mu.shape == (8, 6)
