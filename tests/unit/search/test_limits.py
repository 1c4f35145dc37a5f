"""Option values are checked when a run is planned; name lists repeated in torch-free files match the originals."""

import dataclasses

import pytest

from crbg import methods
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec
from crbg.gates import gaussian
from crbg.methods import crbg, cts, saliency
from crbg.search import objectives, penalties, penalty_names
from crbg.search import saliency as scores


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("crbg", {"noise": -1}, "crbg.noise = -1.0 must be at least 0"),
        ("crbg", {"penalty": "induce_sprase"}, "unknown penalty 'induce_sprase': did you mean 'induce_sparse'?"),
        ("crbg", {"penalty": "x*induce_sparse"}, "not of the form 'a*name+b*name'"),
        ("crbg", {"penalty": "1*induce_sparse+2*foo"}, "unknown penalty 'foo'"),
        ("crbg", {"granularity": "units"}, "granularity = 'units' is unknown: did you mean 'unit'?"),
        ("crbg", {"source": "uniform"}, "choose from: antithetic, counter, normal"),
        ("crbg", {"polish": 1.5}, "crbg.polish = 1.5 must be at most 1"),
        ("cts", {"memory": 1.0}, "cts.memory = 1.0 must be below 1"),
        ("imp", {"drop": 0.0}, "imp.drop = 0.0 must be above 0"),
        ("edge_popup", {"scope": "net"}, "scope = 'net' is unknown: choose from: global, layer"),
    ],
)
def test_values_outside_their_limits_are_refused(method, options, words):
    with pytest.raises(CrbgError) as caught:
        methods.options(method, options)
    assert words in str(caught.value)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(CrbgError, match=r"crbg\.noise = .*; crbg\.lr = "):
        methods.options("crbg", {"noise": -1, "lr": -1})


@pytest.mark.parametrize("method", methods.names())
def test_defaults_are_within_their_limits(method):
    made = methods.options(method, {})
    assert made == methods.get(method).Options()
    assert methods.differing(made) == {}


def test_repeated_names_are_those_of_the_modules_that_need_torch():
    assert set(penalty_names.PENALTIES) == set(penalties.PENALTIES)
    assert set(crbg.SOURCES) == set(gaussian.NOISE_SOURCES)
    assert set(cts.OBJECTIVES) == set(objectives.NAMES)
    assert set(cts.SECOND_ORDER) == set(objectives.SECOND_ORDER)
    assert set(saliency.SCORES) == set(scores.SCORES)


@pytest.mark.parametrize(
    "name", ["induce_sparse", "0.5*induce_sparse+0.5*induce_decision", "decision_quad + 2*decision_entropy"]
)
def test_every_penalty_that_the_search_reads_is_allowed(name):
    assert penalties.penalty(name)
    assert methods.options("crbg", {"penalty": name}).penalty == name


@pytest.mark.parametrize(
    ("method", "density", "options", "words"),
    [
        ("edge_popup", None, {}, "edge_popup needs a density above 0"),
        ("stg", 0.5, {}, "stg determines the density itself; leave `density` out"),
        ("crbg", None, {"polish": 0.5}, "crbg.polish needs a target density"),
        ("crbg", 0.5, {"shared_lr": 0.1, "granularity": "unit"}, "crbg.shared_lr needs one gate per weight"),
        ("cts", 0.5, {"gate": "clipped", "objective": "grad"}, "second derivatives"),
        ("cts", 0.5, {"gate": "clipped", "budget": "bernoulli"}, "cts.budget is for Concrete gates"),
    ],
)
def test_what_does_not_go_together_is_refused(method, density, options, words):
    with pytest.raises(CrbgError) as caught:
        Spec("mnist", "lenet-16", method, density, options=options)
    assert words in str(caught.value)


def test_a_declared_option_is_a_plain_field_with_a_default():
    assert {f.name: f.default for f in dataclasses.fields(methods.get("probe").Options)} == {"lr": 1e-3}
