import pytest
import torch
from torch import nn

from crbg import find_ticket, measure
from crbg.errors import CrbgError


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    x = torch.randn(600, 1, 8, 8)
    return x, (x[:, 0, :4].sum((1, 2)) > x[:, 0, 4:].sum((1, 2))).long()


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 2))


@pytest.mark.parametrize(("build", "limit"), [(mlp, 1500), (mlp, 2200), (cnn, 1500)])
def test_the_file_of_the_ticket_has_the_size_that_was_asked_for(build, limit, data, tmp_path):
    model = build()
    found = find_ticket(model, data, bytes=limit, epochs=4, batch=50)
    found.ticket().save(tmp_path / "ticket")
    assert 0.98 * limit <= (tmp_path / "ticket").stat().st_size <= limit
    assert found.cost.endswith(f" of {limit:,} bytes")
    assert f"cost: {found.cost}" in str(found)


@pytest.mark.parametrize(
    "options", [{"gain": "none"}, {"polish": 0.0}, {"loss": lambda out, y: (out[:, 0] - y).square().mean()}]
)
def test_a_file_without_gains_or_logit_scale_reserves_no_bytes_for_them(options, data):
    found = find_ticket(mlp(), data, bytes=1200, epochs=4, batch=50, **options)
    assert 0.98 * 1200 <= len(found.ticket().to_bytes()) <= 1200


def test_the_search_itself_approaches_the_budget(data):
    """The mask that is cut to the budget has nearly the density at which the search ended."""
    found = find_ticket(mlp(), data, bytes=1500, epochs=6, batch=50)
    assert found.mask.density == pytest.approx(found.history[-1]["density"], rel=0.1)


def test_the_flops_of_the_ticket_are_those_that_were_asked_for(data):
    model = cnn()
    dense = measure.flops(model, data[0])["dense"]
    found = find_ticket(model, data, flops=dense / 5, epochs=4, batch=50)
    assert 0.98 * dense / 5 <= measure.flops(model, data[0], found.mask)["kept"] <= dense / 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bytes": 4000, "density": 0.1}, "pass one of `density`, `bytes` and `flops`"),
        ({"bytes": 4000, "flops": 100}, "pass one of `density`, `bytes` and `flops`"),
        ({"bytes": -1}, "bytes -1 must be a positive number"),
        ({"bytes": "4 kB"}, "bytes '4 kB' must be a positive number"),
        ({"bytes": 100}, r"costs at least .* bytes, more than 100; raise the budget"),
        ({"bytes": 10**6}, r"costs at most .* bytes, less than 1,000,000; pass `density`"),
        ({"flops": 10**9}, "FLOPs, less than 1,000,000,000"),
        (
            {"bytes": 2000, "method": "edge_popup"},
            "bytes=2000 works with the method crbg; pass `density` to edge",
        ),
        ({"bytes": 2000, "granularity": "unit"}, "needs one gate per weight"),
        ({"bytes": 2000, "steer": "shift_erk"}, "needs one gate per weight"),
        ({"flops": 9000, "finetune": 1}, "is for frozen parameters, but finetune changes some"),
    ],
)
def test_budgets_that_cannot_be_met_are_one_error(arguments, words, data):
    with pytest.raises(CrbgError, match=words):
        find_ticket(mlp(), data, epochs=1, **arguments)


def test_flops_need_a_model_of_one_tensor(data):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, a, b):
            return self.inner(a + b)

    with pytest.raises(CrbgError, match="flops needs a model that is called with one tensor"):
        find_ticket(Two(), ((data[0], data[0]), data[1]), flops=1000, epochs=1)
