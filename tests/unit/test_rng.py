import hashlib
import math

import numpy as np
import pytest
from scipy.special import ndtri
from torch import nn

from crbg import rng
from crbg.models.initial_weights import initialise


def prefix(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("integers", "2682d5b34f282525"),
        ("uniform", "b672e7e88229419e"),
        ("sign", "aedbe9a7da006fe9"),
        ("normal", "1221c016e9859a1f"),
        ("permutation", "f45430b0cd91a2c8"),
    ],
)
def test_streams_are_the_same_bytes_for_ever(kind, digest):
    assert prefix(getattr(rng, kind)(1000, 7, "pinned", "stream")) == digest


def test_torch_seed_is_pinned_and_fits_63_bits():
    assert rng.torch_seed(7, "gate noise") == 5912939281454991012
    assert all(0 <= rng.torch_seed(s, "x") < 2**63 for s in range(50))


@pytest.mark.parametrize(
    ("law", "digest"),
    [
        ("uniform", "67c244ffe39d4b6b"),
        ("uniform_fan", "b570d9f114fdfeea"),
        ("signed_constant", "b1f9e81d1651e11b"),
        ("kaiming_normal", "020372ac1da9ab2e"),
    ],
)
def test_initial_laws_are_the_same_bytes_for_ever(law, digest):
    model = nn.Sequential(nn.Linear(12, 7, bias=False))
    initialise(model, law, 0.75, 3)
    assert prefix(model[0].weight.detach().numpy()) == digest


def test_inverse_normal_cdf_agrees_with_scipy_into_the_far_tails():
    tails = 10.0 ** -np.arange(1, 300)
    u = np.concatenate(
        [np.linspace(1e-6, 1 - 1e-6, 20001), tails, 1.0 - tails[:15], [0.5, 2.0**-53, 1 - 2.0**-53, 0.075, 0.925]]
    )
    assert np.abs(rng.inverse_normal_cdf(u) - ndtri(u)).max() < 1e-12
    assert rng.inverse_normal_cdf(np.array([0.5]))[0] == 0.0


@pytest.mark.parametrize("count", [rng.BLOCK - 1, rng.BLOCK + 1, 9 * rng.BLOCK + 5])
def test_normals_do_not_depend_on_the_blocks_they_are_drawn_in(count):
    drawn = rng.normal(count, 3, "blocks")
    assert drawn.shape == (count,)
    ends = [0, 1, rng.BLOCK - 2, rng.BLOCK, count // 2, count - 1]
    u = ((rng.integers(count, 3, "blocks") >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    alone = [rng.inverse_normal_cdf(u[i : i + 1])[0] for i in ends if i < count]
    np.testing.assert_array_equal(drawn[[i for i in ends if i < count]], alone)
    np.testing.assert_array_equal(rng.inverse_normal_cdf(u.reshape(1, -1)), drawn[None])


def test_inverse_normal_cdf_is_odd_to_the_bit():
    u = (np.arange(0, 4096) + 0.5) / 8192
    np.testing.assert_array_equal(rng.inverse_normal_cdf(u), -rng.inverse_normal_cdf(1.0 - u))


def test_uniform_is_exact_in_float32_inside_the_open_interval_and_flat():
    n = 200_000
    u = rng.uniform(n, 11, "flat")
    np.testing.assert_array_equal(u.astype(np.float32).astype(np.float64), u)
    assert u.min() > 0.0
    assert u.max() < 1.0
    assert abs(u.mean() - 0.5) < 3 * math.sqrt(1 / 12 / n)
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 43.8  # 99.9 % quantile of chi-squared with 19 degrees of freedom


def test_the_smallest_and_the_largest_integer_stay_inside(monkeypatch):
    monkeypatch.setattr(rng, "integers", lambda *_: np.array([0, 2**64 - 1], np.uint64))
    low, high = rng.uniform(2, 0).astype(np.float32)
    assert 0 < low < high < 1
    assert low == 1 - high
    low, high = rng.normal(2, 0)
    assert -8.3 < low < -8.1
    assert low == -high
    assert list(rng.sign(2, 0)) == [-1, 1]
    assert rng.torch_seed(0) == 0


def test_normal_has_the_moments_of_a_standard_normal():
    n = 200_000
    x = rng.normal(n, 5, "moments")
    assert abs(x.mean()) < 3 / math.sqrt(n)
    assert abs((x**2).mean() - 1) < 3 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 3 * math.sqrt(96 / n)


def test_sign_is_balanced_and_only_plus_or_minus_one():
    s = rng.sign(100_000, 2, "coins")
    assert set(np.unique(s)) == {-1.0, 1.0}
    assert abs(s.mean()) < 3 / math.sqrt(len(s))


def test_permutation_holds_every_index_once():
    order = rng.permutation(1000, 1, "order")
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (order != np.arange(1000)).sum() > 900


@pytest.mark.parametrize("kind", ["integers", "uniform", "sign", "normal", "permutation"])
def test_streams_of_other_seeds_and_names_differ(kind):
    draw = getattr(rng, kind)
    paths = [(0, "a"), (1, "a"), (0, "b"), (0, "a", "a"), (0, "a", "b"), (10, "a"), (-1, "a")]
    drawn = [prefix(draw(64, *p)) for p in paths]
    assert len(set(drawn)) == len(paths)
    assert [prefix(draw(64, *p)) for p in paths] == drawn


def test_a_longer_draw_begins_with_the_shorter_one():
    np.testing.assert_array_equal(rng.normal(100, 3, "grow")[:40], rng.normal(40, 3, "grow"))
