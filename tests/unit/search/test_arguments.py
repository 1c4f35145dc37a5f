import warnings

import pytest
import torch
from networks import randn
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from crbg import find_ticket
from crbg.errors import CrbgError

X, Y = randn(40, 4), torch.arange(40) % 3
MODEL = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
LOADER = DataLoader(TensorDataset(X, Y), 8)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (
            (MODEL, X, Y, 0.1),
            {},
            r"third argument is the density, .*model, \(inputs, labels\), density\)`",
        ),
        (((X, Y), MODEL, 0.1), {}, "the model and the data are swapped"),
        ((lambda x: x, (X, Y), 0.1), {}, "must be an nn.Module, but it is a function"),
        ((nn.Linear, (X, Y), 0.1), {}, "the model is the class Linear; pass an instance"),
        ((MODEL, (X, Y), 0.1), {"where": [MODEL[0]]}, r'contains a Linear; pass `where=r"0\\\.\.\*"`'),
        (
            (nn.DataParallel(nn.Sequential(nn.Sequential(MODEL))), (X, Y), 0.1),
            {"where": [MODEL]},
            r'pass `where=r"0\\\.0\\\.\.\*"`',
        ),
        ((MODEL, (X, Y), 0.1), {"where": "2"}, r"no weight matches '2': .* r'2\\\.\.\*'"),
        ((MODEL, (X, Y), 0.1), {"loss": "mse"}, "loss 'mse' is no function"),
        ((MODEL, (X, Y), 0.1), {"loss": None}, "loss None is no function"),
        ((MODEL, (X, Y), 0.1), {"loss": nn.MSELoss}, r"class MSELoss; pass an instance: `loss=nn\.MSELoss\(\)`"),
        ((MODEL, (X, Y), 0.1), {"metric": "accuracy"}, "metric 'accuracy' is no function"),
        (
            (MODEL, (X, Y), 0.1),
            {"where": lambda name: True},
            "where raised TypeError.* must be a function of",
        ),
        ((MODEL, (X, Y), 0.1), {"validation": (X[:5], Y[:4])}, "^validation: "),
        ((MODEL, (X, Y), 0.1), {"validation": (X * torch.nan, Y)}, "^validation: .*NaN"),
    ],
)
def test_arguments_that_are_mixed_up_are_named(arguments, options, words):
    with pytest.raises(CrbgError, match=words):
        find_ticket(*arguments, epochs=1, **options)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (LOADER, {"batch": 16}, "batch=16 has no effect"),
        (LOADER, {"validation": 0.2}, "validation=0.2 holds out nothing, because a loader cannot be divided"),
        ((X, Y), {"validation": 0.2}, "validation=0.2 holds out nothing, because these would be too few"),
        (LOADER, {"loss": nn.CrossEntropyLoss(reduction="sum")}, "the sum over the batch"),
    ],
)
def test_arguments_without_effect_give_a_warning(data, options, words):
    with pytest.warns(UserWarning, match=words):
        find_ticket(MODEL, data, 0.5, "edge_popup", epochs=1, **options)


def test_defaults_and_arguments_with_an_effect_give_no_warning():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        find_ticket(MODEL, LOADER, 0.5, "edge_popup", epochs=1)
        find_ticket(MODEL, (X, Y), 0.5, "edge_popup", F.cross_entropy, epochs=1, batch=16, validation=0.25)
    assert not [w for w in told if "effect" in str(w.message) or "holds out" in str(w.message)]


def test_steps_without_effect_give_a_warning():
    with pytest.warns(UserWarning, match="steps=3 has no effect, because the data have a length"):
        find_ticket(MODEL, (X, Y), 0.5, epochs=1, steps=3)


def test_weights_that_are_zero_are_counted():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.data[:3] = 0
    with pytest.warns(UserWarning, match="12 of 35 weights with gates are exactly zero .* refers to the other 23"):
        found = find_ticket(model, (X, Y), 0.5, epochs=1)
    assert found.mask.kept == 12
