"""The defaults of `find_ticket`: which variant of `crbg` runs, and where a gain is refused."""

import pytest
import torch
from torch import nn

from crbg import defaults, find_ticket, methods
from crbg.errors import CrbgError


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("given", "density", "variant", "gains"),
    [
        ({}, 0.1, "crbg, polished, gain variance", 2),
        ({"polish": 0.0}, 0.1, "crbg, thesis", 0),
        ({}, None, "crbg, thesis", 0),
        ({"granularity": "unit"}, 0.1, "crbg, thesis", 0),
        ({"pretrain": 1}, 0.1, "crbg, polished", 0),
    ],
)
def test_crbg_is_polished_where_it_can_be(given, density, variant, gains):
    choice = defaults.choose(net(), "crbg", given, density, None)
    assert (choice.variant, len(choice.gains)) == (variant, gains)
    assert not list(methods.conflicts("crbg", choice.options, density))


def test_the_thesis_form_has_the_options_of_the_thesis():
    thesis = methods.options("crbg", {"source": "counter"})
    assert defaults.choose(net(), "crbg", {"polish": 0.0}, 0.1, None).options == thesis


def test_options_that_are_given_win():
    options = defaults.choose(net(), "crbg", {"noise": 0.2, "lr": 0.5}, 0.1, "none").options
    assert (options.noise, options.lr, options.polish) == (0.2, 0.5, 0.5)


@pytest.mark.parametrize("method", ["edge_popup", "biprop", "concrete", "hard_concrete", "supermask"])
def test_other_methods_have_a_gain_only_on_request(method):
    assert not defaults.choose(net(), method, {}, 0.1, None).gains
    assert len(defaults.choose(net(), method, {}, 0.1, "variance").gains) == 2


@pytest.mark.parametrize(
    ("method", "given", "gain", "message"),
    [
        ("crbg", {}, "varianse", "did you mean 'variance'"),
        ("imp", {}, "variance", "needs one gate per weight and frozen weights"),
        ("crbg", {"finetune": 2}, "variance", "needs one gate per weight and frozen weights"),
        ("crbg", {"signed": True}, "variance", "needs one gate per weight and frozen weights"),
        ("crbg", {"granularity": "unit"}, "variance", "needs one gate per weight"),
    ],
)
def test_a_gain_without_a_meaning_is_refused(method, given, gain, message):
    with pytest.raises(CrbgError, match=message):
        defaults.choose(net(), method, given, 0.1, gain)


def test_signs_need_no_other_option():
    assert defaults.completed("crbg", {"signed": True, "lr": 0.1}) == {
        "signed": True, "lr": 0.1, "noise": 0.0, "steer": "penalty"
    }  # fmt: skip
    assert defaults.completed("crbg", {"signed": True, "noise": 0.3})["noise"] == 0.3  # refused later
    assert defaults.completed("crbg", {"product": 1.0}) == {"product": 1.0, "noise": 0.0, "steer": "penalty"}
    assert defaults.completed("crbg", {"lr": 0.1}) == {"lr": 0.1}
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    before = model.weight.detach().clone()
    found = find_ticket(model, (torch.randn(60, 8), torch.arange(60) % 3), 0.5, signed=True, epochs=20, batch=10)
    assert found.changed == {"weight": "flipped"}
    assert found.variant == "crbg, polished"
    ratio = model.weight.detach() / before
    assert set(ratio.flatten().tolist()) == {-1.0, 1.0}
