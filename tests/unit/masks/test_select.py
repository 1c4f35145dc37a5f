import itertools
from fractions import Fraction

import pytest
import torch

from crbg.errors import CrbgError
from crbg.masks.mask import Mask
from crbg.masks.select import Threshold, erk_counts, keep_count, layer_counts, select, top_k

T, F = True, False


def mask_of(**bits):
    return Mask({n: torch.tensor(b) for n, b in bits.items()})


# select -------------------------------------------------------------------------------------------------------------


def naive(scores, k, allowed=None):
    """Sort the allowed weights by (-score, position) in Python, and keep the first k."""
    flat = scores.flatten().tolist()
    free = [i for i in range(len(flat)) if allowed is None or bool(allowed.flatten()[i])]
    kept = set(sorted(free, key=lambda i: (-flat[i], i))[:k])
    return torch.tensor([i in kept for i in range(len(flat))])


def kinds(n, dtype):
    g = torch.Generator().manual_seed(n)
    yield torch.randn(n, generator=g).to(dtype)
    yield torch.randint(0, 3, (n,), generator=g).to(dtype)
    yield torch.full((n,), -1.5, dtype=dtype)
    mixed = torch.randn(n, generator=g).to(dtype)
    mixed[::3], mixed[1::4] = float("inf"), float("-inf")
    yield mixed
    yield torch.tensor([0.0, -0.0] * n, dtype=dtype)[:n]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_top_k_is_the_sort_by_score_and_position(dtype):
    for n in (1, 2, 7, 12):
        for scores in kinds(n, dtype):
            for k in range(n + 1):
                assert torch.equal(top_k(scores, k), naive(scores, k)), (scores, k)


def two_tensors(dtype, n):
    for flat in kinds(n, dtype):
        yield {"x": flat[: n // 3].clone(), "y": flat[n // 3 :].reshape(-1, 2).clone()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_select_over_all_tensors(dtype):
    for scores in two_tensors(dtype, 12):
        together = torch.cat([s.flatten() for s in scores.values()])
        for k in range(13):
            m = select(scores, k)
            assert m.kept == k
            assert m.shapes == {"x": (4,), "y": (4, 2)}
            assert torch.equal(torch.cat([m["x"], m["y"].flatten()]), naive(together, k))


def test_select_layer_by_layer():
    for scores in two_tensors(torch.float32, 12):
        for a, b in itertools.product(range(5), range(9)):
            m = select(scores, {"y": b, "x": a})
            assert m.layer_kept() == {"x": a, "y": b}
            assert torch.equal(m["x"], naive(scores["x"], a))
            assert torch.equal(m["y"].flatten(), naive(scores["y"], b))


def test_select_within_another_mask():
    inside = mask_of(x=[T, F, T, F], y=[[T, T], [F, F], [F, T], [T, F]])
    for scores in two_tensors(torch.float32, 12):
        together, allowed = (
            torch.cat([s.flatten() for s in scores.values()]),
            torch.cat([t.flatten() for t in inside.values()]),
        )
        for k in range(inside.kept + 1):
            m = select(scores, k, inside)
            assert torch.equal(torch.cat([m["x"], m["y"].flatten()]), naive(together, k, allowed))
        per_layer = select(scores, {"x": 1, "y": 3}, inside)
        assert torch.equal(per_layer["x"], naive(scores["x"], 1, inside["x"]))
        assert torch.equal(per_layer["y"].flatten(), naive(scores["y"], 3, inside["y"]))
        with pytest.raises(CrbgError, match="cannot keep 7 of 6"):
            select(scores, 7, inside)


def test_select_keeps_exactly_k_of_many_ties():
    g = torch.Generator().manual_seed(0)
    scores = {"w": torch.randint(0, 4, (300, 7), generator=g).float()}
    for k in (0, 1, 500, 1050, 2099, 2100):
        m = select(scores, k)
        assert m.kept == k
        assert torch.equal(m["w"].flatten(), naive(scores["w"], k))


def test_select_compares_scores_in_their_own_precision():
    scores = torch.tensor([1.0, 1.0 + 1e-12, 1.0 - 1e-12], dtype=torch.float64)
    assert select({"w": scores}, 1)["w"].tolist() == [F, T, F]


def test_nan_is_refused_by_name():
    with pytest.raises(CrbgError, match=r"'b' contain NaN"):
        select({"a": torch.zeros(2), "b": torch.tensor([0.0, float("nan")])}, 1)


@pytest.mark.parametrize("k", [-1, 5])
def test_a_count_that_cannot_be_kept_is_refused(k):
    with pytest.raises(CrbgError, match=f"cannot keep {k} of 4"):
        select({"a": torch.zeros(4)}, k)
    with pytest.raises(CrbgError, match=f"cannot keep {k} of 4 weights of a"):
        select({"a": torch.zeros(4), "b": torch.zeros(9)}, {"a": k, "b": 1})


def test_counts_for_other_tensors_are_refused():
    with pytest.raises(CrbgError, match="counts are given for"):
        select({"a": torch.zeros(4)}, {"b": 1})


def test_keep_count_rounds_to_the_nearest():
    for n in [*range(1, 40), 266_200, 235_200, 11_173_962]:
        for p in range(1001):
            exact = Fraction(p, 1000) * n
            assert abs(keep_count(p / 1000, n) - exact) <= Fraction(1, 2), (p, n)


def test_keep_count_where_truncation_is_off_by_one():
    assert keep_count(0.29, 100) == 29  # in floating point, 0.29 * 100 is 28.999999999999996
    assert keep_count(1 - 0.9, 10) == 1
    assert keep_count(0.0, 5) == 0
    assert keep_count(1.0, 5) == 5


@pytest.mark.parametrize("density", [-0.01, 1.01, float("nan")])
def test_a_density_outside_0_1_is_refused(density):
    with pytest.raises(CrbgError, match="not in \\[0, 1\\]"):
        keep_count(density, 10)


def test_layer_counts_give_every_tensor_the_same_density():
    scores = {"a": torch.zeros(10, 10), "b": torch.zeros(7)}
    assert layer_counts(scores, 0.29) == {"a": 29, "b": 2}


# Threshold ----------------------------------------------------------------------------------------------------------


def kth(scores, k):
    return scores.kthvalue(scores.numel() - k + 1).values


def test_threshold_follows_drifting_scores_exactly():
    g = torch.Generator().manual_seed(0)
    for width in (0.05, 0.001, 0.0):
        threshold, scores = Threshold(width), torch.rand(4000, generator=g)
        for _ in range(60):
            scores = (scores + 0.003 * torch.randn(4000, generator=g)).abs()
            assert torch.equal(threshold(scores, 700), kth(scores, 700))


def test_threshold_survives_jumps_ties_and_other_counts():
    g = torch.Generator().manual_seed(1)
    threshold = Threshold()
    base = torch.rand(500, generator=g)
    tied = torch.randint(0, 5, (500,), generator=g).float()
    sequence = [
        base,
        base * 1000,
        base * 1e-6,
        torch.zeros(500),
        base,
        tied,
        tied * 1.04,
        torch.full((500,), 3.0),
        base.round(decimals=1),
    ]
    for scores in sequence:
        for k in (1, 2, 250, 251, 499, 500):
            assert torch.equal(threshold(scores, k), kth(scores, k)), (scores[:5], k)


def test_threshold_sorts_only_its_window(monkeypatch):
    threshold, scores, sizes = Threshold(), torch.linspace(0, 1, 10_000), []
    plain = torch.Tensor.kthvalue
    monkeypatch.setattr(torch.Tensor, "kthvalue", lambda self, k: sizes.append(self.numel()) or plain(self, k))
    threshold(scores, 5000)
    threshold(scores + 0.001, 5000)
    assert sizes == [10_000, 500]


def test_threshold_counts_scores_on_the_edges_of_its_window():
    threshold = Threshold(0.5)
    threshold(torch.tensor([1.0, 1.0, 1.0]), 2)  # the window becomes [0.5, 1.5], with exact bounds
    for scores in ([1.5, 1.5, 0.5, 0.5], [2.0, 1.5, 1.0, 0.5], [0.5, 0.5, 0.5, 0.1], [9.0, 1.5, 1.5, 1.5]):
        for k in range(1, 5):
            threshold.last = 1.0
            assert threshold(torch.tensor(scores), k) == sorted(scores)[-k]


def test_erk_keeps_more_of_small_tensors_and_the_right_number_in_total():
    scores = {"big": torch.rand(100, 100), "middle": torch.rand(20, 100), "small": torch.rand(10, 20)}
    counts = erk_counts(scores, 0.1)
    assert sum(counts.values()) == pytest.approx(0.1 * 12200, abs=2)
    density = {n: k / scores[n].numel() for n, k in counts.items()}
    assert density["middle"] / density["big"] == pytest.approx((120 / 2000) / (200 / 10000), rel=0.02)
    assert erk_counts(scores, 0.5)["small"] == 200, "a tensor cannot keep more than all of its weights"
    assert sum(erk_counts(scores, 0.5).values()) == pytest.approx(6100, abs=2)
    assert erk_counts(scores, 1.0) == {"big": 10000, "middle": 2000, "small": 200}
