import dataclasses
from itertools import product

import pytest
import torch
from torch import nn

from crbg import find_ticket
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec
from crbg.gates.attach import bake
from crbg.methods.subset_sum import assigned, closest_subset
from crbg.models.initial_weights import initialise
from crbg.models.registry import build
from crbg.runs.verify import PASS

SPEC = Spec(
    "linear_teacher",
    "lenet-400",
    "subset_sum",
    init="uniform",
    scale=2.0,
    epochs=0,
    batch=64,
    model_args={"activation": "relu"},
)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
def test_the_subset_is_the_closest_of_all(count):
    torch.manual_seed(count)
    values = torch.randn(count, dtype=torch.double)
    for target in (-3.0, -0.2, 0.0, 0.7, 2.5):
        chosen = closest_subset(values, target)
        sums = [
            float((values * torch.tensor(bits, dtype=torch.double)).sum()) for bits in product((0, 1), repeat=count)
        ]
        best = min(abs(s - target) for s in sums)
        assert abs(float(values[chosen].sum()) - target) == pytest.approx(best, abs=1e-12)


def test_units_are_spread_over_the_inputs_that_they_react_to():
    slopes = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.5, 0.5], [0.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    assert assigned(slopes) == [[0, 2, 4], [1, 5]]


def test_the_ticket_represents_the_map_with_frozen_weights(one_run):
    done = one_run(SPEC)
    assert done.row.verdict == PASS
    assert done.record.value() < 0.01
    narrow = one_run(dataclasses.replace(SPEC, model="lenet-64")).record
    assert narrow.value() > 10 * done.record.value()


def test_each_entry_is_the_sum_of_products_of_kept_weights():
    data = load("linear_teacher")
    x, y = data.train.batch(slice(None))
    model = build("lenet-400", (16,), 10, activation="relu")
    initialise(model, "uniform", 2.0, 0)
    found = find_ticket(model, (x, y), None, "subset_sum", loss=nn.functional.mse_loss, epochs=1, most=20)
    assert int(found.mask["fc1.weight"].sum(1).max()) == 1  # a unit reads one input
    bake(model, found.mask)
    weights = dict(model.named_parameters())
    built = weights["fc2.weight"] @ torch.relu(weights["fc1.weight"])
    wanted = torch.linalg.lstsq(x.double(), y.double()).solution.T
    assert float((built - wanted).abs().median()) < 1e-3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: (-x, y), "inputs >= 0"),
        (lambda x, y: (x, y.square()), "targets that are a linear map"),
        (lambda x, y: (x[:, :8], y), "reads 16"),
    ],
)
def test_other_data_are_refused(data, message):
    torch.manual_seed(0)
    x = torch.rand(60, 16)
    y = x @ torch.randn(16, 3)
    x, y = data(x, y)
    model = nn.Sequential(nn.Linear(16, 30, bias=False), nn.ReLU(), nn.Linear(30, 3, bias=False))
    if message == "reads 16":
        model = nn.Sequential(nn.ZeroPad1d((0, 8)), model)
        y = x @ torch.randn(8, 3)
    with pytest.raises(CrbgError, match=message):
        find_ticket(model, (x, y), None, "subset_sum", loss=nn.functional.mse_loss, epochs=1)


def test_deeper_networks_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(CrbgError, match="one hidden layer"):
        find_ticket(model, (torch.rand(9, 4), torch.rand(9, 2)), None, "subset_sum", loss=nn.functional.mse_loss)


def test_the_target_is_a_linear_map_and_the_same_everywhere():
    data = load("linear_teacher")
    x, y = data.train.batch(slice(None))
    assert (tuple(x.shape), tuple(y.shape)) == ((1197, 16), (1197, 10))
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert float(y.std()) == pytest.approx(1, abs=0.01)
    matrix = torch.linalg.lstsq(x.double(), y.double()).solution * 1024
    torch.testing.assert_close(matrix, matrix.round(), rtol=0, atol=1e-2)
    assert data.digest[:12] == "462a442b9f2a"
