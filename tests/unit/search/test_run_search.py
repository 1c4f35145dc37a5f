from types import SimpleNamespace

import pytest
import torch
from networks import randn, tiny

from crbg import methods
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates
from crbg.gates.base import Fixed
from crbg.methods.contract import SearchResult, SearchTask
from crbg.search.run_search import run_search
from crbg.training.batches import LoaderBatches

X = randn(32, 1, 6, 6)
TASK = SearchTask(
    LoaderBatches([(X, (X.mean((1, 2, 3)) > 0).long())], torch.device("cpu")),
    0.5,
    2,
    0,
    torch.nn.functional.cross_entropy,
)


def state(model):
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    return tensors, [m.training for m in model.modules()], {n: p.requires_grad for n, p in model.named_parameters()}


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(t.equal(b[0][n]) for n, t in a[0].items())


def network():
    """Return a network in an unusual state: one module in evaluation mode, one parameter that requires no gradient."""
    model = tiny()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    return model


def meddling(error=None, changed=None, touch=True):
    """Return a method that leaves the model changed, and either raises an error or reports the changed tensors."""

    def find(model, task, options):
        attach(model, lambda name, w: Fixed(torch.ones_like(w)))
        model.train()
        model.head.bias.requires_grad_(True)
        with torch.no_grad():
            model.norm.running_mean.add_(1.0)
            if touch:
                model.get_parameter("head.parametrizations.weight.original").add_(1.0)
        if error:
            raise error
        return SearchResult(mask=None, changed=changed or {})

    return SimpleNamespace(find=find)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), CrbgError("no")], ids=type)
def test_a_search_that_raises_leaves_the_model_as_it_was(error):
    model = network()
    before = state(model)
    with pytest.raises(type(error)):
        run_search(model, TASK, meddling(error), None)
    assert not attached_gates(model)
    assert same(state(model), before)


def test_a_changed_weight_is_an_error_and_is_restored():
    model = network()
    before = state(model)
    with pytest.raises(CrbgError, match=r"the search changed 'head\.weight', which has the role 'frozen'"):
        run_search(model, TASK, meddling(), None)
    assert same(state(model), before)


def test_buffers_may_change_by_default_and_are_restored():
    model = network()
    before = state(model)
    found = run_search(model, TASK, meddling(touch=False), None)
    assert found.running["norm.running_mean"].equal(before[0]["norm.running_mean"] + 1), "as the search left them"
    assert same(state(model), before)
    with pytest.raises(CrbgError, match=r"changed 'norm\.running_mean'"):
        run_search(model, TASK, meddling(touch=False), None, roles={})
    assert same(state(model), before)


@pytest.mark.parametrize("role", ["redrawn", "trained"])
def test_what_a_method_says_it_changed_stays_changed(role):
    model = network()
    before = state(model)
    run_search(model, TASK, meddling(changed={"head.weight": role}), None)
    after = state(model)
    assert after[1:] == before[1:]
    assert after[0]["head.weight"].equal(before[0]["head.weight"] + 1)
    # If weights were trained, the running statistics of the training are kept.
    assert after[0]["norm.running_mean"].equal(before[0]["norm.running_mean"] + (role == "trained"))


def test_a_gated_model_is_refused_and_keeps_its_gates():
    model = attach(network(), lambda name, w: Fixed(torch.ones_like(w)))
    with pytest.raises(CrbgError, match="already has gates"):
        run_search(model, TASK, methods.get("random"), methods.options("random", {}))
    assert set(attached_gates(model)) == {"conv.weight", "head.weight"}


@pytest.mark.parametrize("method", ["crbg", "edge_popup", "random", "iterand"])
def test_methods_search_on_weights_that_stay(method):
    model = network()
    before = state(model)
    found = run_search(model, TASK, methods.get(method), methods.options(method, {}))
    assert 0 < found.mask.density < 1
    assert same(state(model), before) or set(found.changed.values()) == {"redrawn"}
