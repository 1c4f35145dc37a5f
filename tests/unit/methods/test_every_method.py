"""Results of every registered method agree with its declared traits, on a small dense and a convolutional network."""

import math

import pytest
import torch
from torch import nn

from crbg import methods
from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.experiments.spec import Spec
from crbg.models.initial_weights import initialise
from crbg.models.registry import build

DENSITY = 0.25
MODELS = {"lenet": ("lenet-32-16", {}), "conv": ("conv2", {"width": 0.07})}
NORMAL, SIGNED = {"init": "kaiming_normal"}, {"init": "signed_constant", "scale": 2.0}
# Settings that each method needs on such small networks, in addition to `base` below.
WANTED = {
    "biprop": SIGNED,
    "concrete": {},
    "crbg": {},
    "cts": NORMAL | {"options": {"lr": 0.05, "rewind": 1, "search": 2}},
    "dense": NORMAL | {"density": None},
    "edge_popup": {},
    "gem_miner": {"options": {"periods": 3, "lr": 5.0}},
    "hard_concrete": {},
    "imp": NORMAL | {"options": {"lr": 0.05, "rewind": 1, "drop": 0.6}},
    "iterand": {"options": {"period": 10}},
    "multicoated": {},
    "partial": {},
    "probe": {"density": None},
    "random": {},
    "recycling": {"options": {"period": 10}},
    "saliency": NORMAL | {"options": {"lr": 0.05, "rewind": 1}},
    "sparse_vd": NORMAL | {"density": None, "options": {"lr": 0.01}},
    "stg": {"density": None},
    "supermask": {"options": {"rescale": True, "lr": 10.0}},
}
ELSEWHERE = ["subset_sum"]  # needs a linear target; see test_subset_sum.py


def few(part):
    return ImagePart(part.x[:384], part.y[:384], part.mean, part.std)


@pytest.fixture(scope="module")
def found(digits):
    """Return a function that runs each search once; it returns the spec, states before and after, and the result."""
    done = {}

    def get(method, kind):
        if (method, kind) not in done:
            name, options = MODELS[kind]
            base = {"density": DENSITY, "scale": 0.5, "epochs": 3, "batch": 64, "model_args": options}
            spec = Spec("digits", name, method, **(base | WANTED[method]))
            model = build(name, digits.in_shape, digits.classes, **options)
            initialise(model, spec.init, spec.scale, 0)
            before = {n: t.clone() for n, t in model.state_dict().items()}
            task = methods.SearchTask(
                BatchLoader(few(digits.train), spec.batch, 0), spec.density, spec.epochs, 0, nn.functional.cross_entropy
            )
            done[method, kind] = (spec, before, model, methods.get(method).find(model, task, spec.resolved()))
        return done[method, kind]

    return get


EVERY = pytest.mark.parametrize(("method", "kind"), [(m, k) for m in WANTED for k in MODELS])
pytestmark = pytest.mark.xdist_group("every method")


def test_every_method_is_tested_here():
    assert {*WANTED, *ELSEWHERE} == set(methods.names())


@EVERY
def test_it_keeps_what_its_traits_promise(found, method, kind):
    spec, before, _, result = found(method, kind)
    promise, mask = methods.get(method).TRAITS.density, result.mask
    assert {n: tuple(m.shape) for n, m in mask.items()} == {n: tuple(before[n].shape) for n in mask}
    assert set(mask) == {n for n, t in before.items() if t.dim() > 1}
    if promise.startswith("exact, per layer"):
        assert {n: int(m.sum()) for n, m in mask.items()} == {
            n: round(spec.density * m.numel()) for n, m in mask.items()
        }
    elif promise.startswith("exact"):
        assert mask.kept == round(spec.density * mask.total)
    elif promise.startswith("controlled to within 2 %"):
        assert abs(mask.kept - spec.density * mask.total) <= 0.02 * spec.density * mask.total
        assert result.exact.kept == round(spec.density * mask.total)
    elif promise == "all weights kept":
        assert mask.kept == mask.total
    else:
        assert promise.startswith("determined by")
        assert 0 < mask.kept <= mask.total


@EVERY
def test_weights_move_as_its_traits_say_and_no_others(found, method, kind):
    _, before, model, result = found(method, kind)
    promise, after = methods.get(method).TRAITS.weights, model.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == set(result.changed)
    last = list(before)[-1]
    assert moved == {"frozen": set(), "last layer trained": {last}}.get(promise, set(before))
    role = {"partly redrawn": "redrawn", "partly copied": "copied", "multiplied by integers": "multiplied"}
    assert set(result.changed.values()) == ({role.get(promise, "trained")} if moved else set())
    assert all(p.requires_grad for p in model.parameters())
    assert not any("parametrizations" in n for n in after)


@EVERY
def test_history_has_a_row_for_every_epoch(found, method, kind):
    spec, *_, result = found(method, kind)
    epochs = 0 if methods.get(method).TRAITS.gradient == "none" else spec.epochs - getattr(spec.resolved(), "rewind", 0)
    assert [row["epoch"] for row in result.history] == [i + 1.0 for i in range(epochs)]
    assert all(math.isfinite(v) for row in result.history for v in row.values())
