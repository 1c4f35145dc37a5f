"""Temporal convolutional networks: causality, receptive field, values, gates and errors."""

import itertools

import numpy as np
import pytest
import torch
from networks import randn
from torch import nn

from crbg import models
from crbg.errors import CrbgError
from crbg.gates.attach import weights
from crbg.models import registry


def network(name="tcn-8x3", length=40, horizon=4, seed=0):
    return models.initial(name, (length,), horizon, "kaiming_normal", 1.0, seed)[0]


def one_by_one(model, x):
    """Compute the forecasts with loops over time and channels; values before the window are zero."""
    h = x.detach().double().numpy()[:, None]
    for i, level in enumerate(model.levels):
        w = level.conv.weight.detach().double().numpy()
        new = np.zeros((len(h), w.shape[0], h.shape[2]))
        for t in range(h.shape[2]):
            for k in range(3):
                if (source := t - (2 - k) * 2**i) >= 0:
                    new[:, :, t] += h[:, :, source] @ w[:, :, k].T
        new = np.maximum(new, 0)
        h = new if i == 0 else new + h
    return h[:, :, -1] @ model.fc.weight.detach().double().numpy().T


@pytest.mark.parametrize("length", [1, 2, 9, 15, 16, 40])
def test_forecasts_are_those_of_loops_over_time(length):
    """The receptive field has 15 values, so windows are cut or preceded by zeros."""
    model, x = network(), randn(5, length)
    np.testing.assert_allclose(model(x).detach().numpy(), one_by_one(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "seen"), [("tcn-32x4", 31), ("tcn-8x1", 3), ("tcn-4x5", 63)])
def test_the_receptive_field_is_the_stated_one(name, seen):
    model, x = network(name, 96), randn(64, 96).requires_grad_()
    model(x).square().sum().backward()
    used = x.grad.abs().sum(0) > 0
    assert used.tolist() == [False] * (96 - seen) + [True] * seen


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_no_time_step_depends_on_a_later_one(dilation):
    level = network().levels[{1: 0, 2: 1, 4: 2}[dilation]]
    h = randn(2, level.conv.in_channels, 20)
    out = level(h)
    assert out.shape[2] == 20 - 2 * dilation, "the last time steps"
    for t in range(20):
        changed = h.clone()
        changed[:, :, t] += 1.0
        same = (level(changed) == out).all(1).all(0)
        first = t - 2 * dilation  # the place of time step t in the output
        assert bool(same[: max(0, first)].all()), "earlier time steps do not see a later one"
        if first >= 0:
            assert not bool(same[first])


def test_all_weights_are_gated_and_get_a_gradient():
    model, roles = models.initial("tcn-32x4", (96,), 12, "kaiming_normal", 1.0, 0)
    expected = {f"levels.{i}.conv.weight": (32, 32 if i else 1, 3) for i in range(4)} | {"fc.weight": (12, 32)}
    assert {n: tuple(w.shape) for n, w in weights(model).items()} == expected
    assert roles == dict.fromkeys(expected, "gated"), "there are no biases"
    assert [level.conv.dilation for level in model.levels] == [(1,), (2,), (4,), (8,)]
    out = model(randn(8, 96))
    assert out.shape == (8, 12)
    nn.functional.mse_loss(out, torch.zeros(8, 12)).backward()
    assert all(float(w.grad.abs().max()) > 0 for w in weights(model).values())


@pytest.mark.parametrize(("scale", "least", "most"), [(1.0, 2.0, 3.0), (0.5, 1.0, 2.0)])
def test_the_mean_square_grows_with_the_levels_as_stated(scale, least, most):
    model, _ = models.initial("tcn-64x4", (96,), 12, "kaiming_normal", scale, 0)
    h = randn(500, 1, 31)
    squares = [float((h := level(h).detach()).square().mean()) for level in model.levels]
    assert all(least < b / a < most for a, b in itertools.pairwise(squares)), squares


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("tcn-0x4", (96,), "at least 1 channel and 1 to 6 levels"),
        ("tcn-32x0", (96,), "at least 1 channel and 1 to 6 levels"),
        ("tcn-32x7", (96,), "'tcn-32x7': for windows of 96 values, choose .* 1 to 6 levels"),
        ("tcn-32x4", (1, 28, 28), r"tcn-32x4 takes a series of shape \(length,\), not inputs of shape \(1, 28, 28\)"),
        ("tcn-32", (96,), "unknown model 'tcn-32'"),
    ],
)
def test_what_cannot_be_built_says_why(name, shape, message):
    with pytest.raises(CrbgError, match=message):
        models.build(name, shape, 12)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 62, 63, 64, 96])
def test_the_largest_number_of_levels_is_the_first_that_sees_the_window(length):
    most = next(k for k in range(1, 99) if 2 ** (k + 1) - 1 >= length)
    models.build(f"tcn-2x{most}", (length,), 1)
    with pytest.raises(CrbgError, match=f"1 to {most} levels"):
        models.build(f"tcn-2x{most + 1}", (length,), 1)


def test_the_planner_offers_it_for_series_only():
    assert list(registry.problems("tcn-32x4", {}, kind="series")) == []
    assert "tcn-32x4 takes series, not images" in next(registry.problems("tcn-32x4", {}, kind="images"))
