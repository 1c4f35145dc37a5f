import contextlib
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from networks import randn, tiny
from torch import nn

from crbg import find_ticket, methods
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, detach, weights
from crbg.gates.base import Fixed
from crbg.gates.layers import unwrap
from crbg.gates.selection import Selection
from crbg.masks.mask import Mask
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
    # If weights were trained, the running statistics from training are kept.
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


# the state of the model -----------------------------------------------------------------------------------------------


def unusual():
    """Return a channels-last network with gradients, and the facts about it that a search must not change."""
    model = network().to(memory_format=torch.channels_last)
    model.register_buffer("temporary", torch.arange(3.0), persistent=False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    return model


def facts(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "objects": [(n, id(t)) for n, t in tensors],
        "bytes": {n: t.detach().clone() for n, t in tensors},
        "layout": [(n, t.stride()) for n, t in tensors],
        "gradients": [
            (n, id(p.grad), None if p.grad is None else float(p.grad.sum())) for n, p in model.named_parameters()
        ],
        "flags": [(n, p.requires_grad) for n, p in model.named_parameters()],
        "state_dict": list(model.state_dict()),
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def assert_same(a, b, but=()):
    assert {k: v for k, v in a.items() if k != "bytes"} == {k: v for k, v in b.items() if k != "bytes"}
    assert [n for n in a["bytes"] if not a["bytes"][n].equal(b["bytes"][n])] == list(but)


ENDS = {
    "success": (None, {}, ()),
    "error": (RuntimeError("no"), {}, ()),
    "interrupt": (KeyboardInterrupt(), {}, ()),
    "redrawn": (None, {"head.weight": "redrawn"}, ["head.weight"]),
    "trained": (None, {"head.weight": "trained"}, ["head.weight", "temporary", "norm.running_mean"]),
}


@pytest.mark.parametrize("end", ENDS)
def test_everything_else_about_the_model_is_as_before(end):
    error, changed, moved = ENDS[end]
    model = unusual()
    before = facts(model)
    method = meddling(error, changed, touch=bool(changed) or error is not None)

    def find(model, task, options):
        assert model.conv.weight.grad is None, "the search starts without gradients"
        model.temporary = model.temporary + 1
        model.to(memory_format=torch.contiguous_format)
        model.conv.weight.grad = torch.zeros_like(model.conv.weight)
        return method.find(model, task, options)

    with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
        run_search(model, TASK, SimpleNamespace(find=find), None)
    after = facts(model)
    if end == "trained":  # a buffer that the training replaced
        before["objects"] = after["objects"]
    assert_same(before, after, moved)


@pytest.mark.parametrize("method", ["crbg", "edge_popup", "imp", "saliency"])
@pytest.mark.parametrize("end", ["success", "nan", "interrupt"])
def test_searches_of_the_library_leave_the_model_as_it_was(method, end):
    model, x = unusual(), X.clone()
    before, options = facts(model), {"lr": 0.01} if method in ("imp", "saliency") else {}
    if end == "nan":
        x[20, 0, 3, 3] = float("nan")

    def stop(done, total):
        if end == "interrupt" and done >= 2:
            raise KeyboardInterrupt

    expected = {"success": contextlib.nullcontext(), "nan": pytest.raises(Exception, match=r"finite|NaN|nan")}.get(
        end, pytest.raises(KeyboardInterrupt)
    )
    with expected:
        find_ticket(model, (x, torch.arange(32) % 2), 0.5, method, epochs=2, batch=16, progress=stop, **options)
    after = facts(model)
    trained = end == "success" and method in ("imp", "saliency")
    if trained:
        before["bytes"] = after["bytes"]
    assert_same(before, after)


@pytest.mark.parametrize("method", ["crbg", "imp"])
def test_the_state_of_an_optimiser_fits_after_a_search(method):
    model = network()
    model.train()
    adam = torch.optim.Adam(list(model.parameters()))
    model(X).sum().backward()
    adam.step()
    options = {"lr": 0.01} if method == "imp" else {}
    find_ticket(model, (X, torch.arange(32) % 2), 0.5, method, epochs=1, batch=16, **options)
    other = torch.optim.Adam(list(model.parameters()))
    other.load_state_dict(adam.state_dict())
    assert all(p.shape == other.state[p]["exp_avg"].shape for p in other.state)


# wrapped models -------------------------------------------------------------------------------------------------------


def in_place(model):
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "compiled in place": in_place,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("method", ["crbg", "imp"])
def test_wrapped_models_are_searched_inside_their_wrapper(wrap, method):
    options, data = ({"lr": 0.01} if method == "imp" else {}), (X, torch.arange(32) % 2)
    plain = find_ticket(tiny(), data, 0.5, method, epochs=1, batch=16, **options)
    model = WRAPPERS[wrap](tiny())
    found = find_ticket(model, data, 0.5, method, epochs=1, batch=16, **options)
    assert found.mask == plain.mask
    assert found.apply(model) is not None
    inner = unwrap(model)
    assert bool((inner.head.weight[~found.mask["head.weight"]] == 0).all())
    assert (inner._compiled_call_impl is not None) == (wrap == "compiled in place")
    assert list(weights(model)) == list(found.mask)
    attach(model, lambda name, w: Fixed(torch.zeros_like(w)))
    assert list(attached_gates(model)) == list(found.mask)
    assert not attached_gates(detach(model))


def test_a_model_compiled_in_place_is_searched_without_its_compiled_code():
    model, calls = tiny(), []

    def compiled(x):
        calls.append(x)
        return model._call_impl(x)

    model._compiled_call_impl = compiled
    run_search(model, TASK, methods.get("crbg"), methods.options("crbg", {}))
    assert not calls
    model(X)
    assert len(calls) == 1


def test_a_distributed_model_is_unwrapped():
    inner, outer = tiny(), nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(outer)
    outer.module = nn.DataParallel(inner)
    assert unwrap(outer) is inner


# networks without weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["crbg", "edge_popup", "imp", "random"])
def test_a_density_below_one_weight_is_refused(method):
    with pytest.raises(CrbgError, match=r"density 0\.001 keeps none of the \d+ weights; the smallest density"):
        find_ticket(tiny(), (X, torch.arange(32) % 2), 0.001, method, epochs=1, batch=16)


def test_layers_and_outputs_without_a_weight_are_warned_of():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, 3))
    mask = Mask({"1.weight": torch.zeros(4, 36, dtype=torch.bool), "2.weight": torch.eye(3, 4, dtype=torch.bool)})
    keep = SimpleNamespace(find=lambda model, task, options: SearchResult(mask))
    task = replace(TASK, selection=Selection())
    with pytest.warns(UserWarning, match=r"no weight in 1\.weight; a larger density may help") as seen:
        run_search(model, task, keep, None)
    assert [w.filename for w in seen] == [__file__], "the position is that of the user's call"
    mask = Mask(
        {
            "1.weight": torch.ones(4, 36, dtype=torch.bool),
            "2.weight": torch.eye(3, 4, dtype=torch.bool) & (torch.arange(3)[:, None] != 1),
        }
    )
    with pytest.warns(UserWarning, match=r"no weight for 1 of 3 outputs of 2\.weight \(1\)"):
        run_search(model, task, keep, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_search(model, TASK, keep, None)  # recorded runs are judged by their measurements


def test_a_search_keeps_the_order_of_parameters_that_are_none():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        find_ticket(model, (X, torch.arange(32) % 3), 0.5, epochs=1)
    assert list(model[1]._parameters) == ["weight", "bias"]
