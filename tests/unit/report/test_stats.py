import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from crbg.errors import CrbgError
from crbg.report import stats

calm = settings(deadline=None)  # a slow machine must not make the test fail
NUMBERS = st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=2, max_size=8).filter(
    lambda v: max(v) - min(v) > 0.01
)


# --- statistics ---


@calm
@given(NUMBERS, st.sampled_from([0.9, 0.95, 0.99]))
def test_t_interval_is_that_of_scipy(sample, level):
    ours = stats.t_interval(sample, level)
    low, high = scipy_stats.t.interval(level, len(sample) - 1, np.mean(sample), scipy_stats.sem(sample))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert ours.mean == pytest.approx(np.mean(sample), abs=1e-9)
    assert (ours.n, ours.half) == (len(sample), pytest.approx((high - low) / 2))


@calm
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-3, 3)), min_size=2, max_size=8))
def test_paired_test_is_that_of_scipy(pairs):
    a, b = [round(x, 3) for x, _ in pairs], [round(x - d, 3) for x, d in pairs]
    ours = stats.paired(a, b)
    if np.ptp(np.subtract(a, b)) > 1e-2:
        theirs = scipy_stats.ttest_rel(a, b)
        reach = theirs.confidence_interval(0.95)
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6)
        assert (ours.difference.low, ours.difference.high) == pytest.approx((reach.low, reach.high), abs=1e-8)
    assert ours.difference.mean == pytest.approx(np.mean(np.subtract(a, b)), abs=1e-9)
    assert ours.test == "paired t"


@calm
@given(NUMBERS, NUMBERS)
def test_welch_test_is_that_of_scipy(a, b):
    ours, theirs = stats.welch(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    reach = theirs.confidence_interval(0.95)
    assert (ours.p, ours.test) == (pytest.approx(theirs.pvalue), "Welch")
    assert (ours.difference.low, ours.difference.high) == pytest.approx((reach.low, reach.high))
    assert ours.difference.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)


def test_one_value_says_nothing_about_spread():
    i = stats.t_interval([3.0])
    assert (i.mean, i.low, i.high, i.n) == (3.0, -math.inf, math.inf, 1)
    for test in (stats.paired, stats.welch):
        c = test([3.0], [1.0])
        assert (c.difference.mean, c.difference.low, c.difference.high) == (2.0, -math.inf, math.inf)
        assert math.isnan(c.p)
        assert c.test == "none (n = 1)"
    assert math.isnan(stats.welch([3.0], [1.0, 2.0]).p)
    with pytest.raises(CrbgError, match="at least one value"):
        stats.t_interval([])
    with pytest.raises(CrbgError, match="2 values against 1"):
        stats.paired([1.0, 2.0], [1.0])


def test_equal_differences_have_no_spread():
    assert stats.paired([1.0, 2.0], [0.5, 1.5]).p == 0.0
    assert stats.paired([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_holm_by_hand():
    # In sorted order, Holm's values are 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is replaced by the larger
    # previous value.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


@calm
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_is_monotone_and_knows_no_order(p, random):
    adjusted = stats.holm(p)
    assert all(raw <= new <= 1 for raw, new in zip(p, adjusted, strict=True))
    assert min(adjusted) == min(1.0, len(p) * min(p))
    ranked = [adjusted[i] for i in sorted(range(len(p)), key=lambda i: p[i])]
    assert ranked == sorted(ranked)
    order = list(range(len(p)))
    random.shuffle(order)
    assert stats.holm([p[i] for i in order]) == [adjusted[i] for i in order]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([], "not run"),
        ([96.0], "inconclusive"),  # one seed is too few for a verdict
        ([97.25, 97.25], "exceeded"),
        ([97.0, 97.0], "reproduced"),  # exactly at the upper margin
        ([95.0, 95.0], "reproduced"),  # exactly at the lower margin
        ([94.75, 94.75], "not reproduced"),
        ([97.2, 97.3, 97.4], "exceeded"),
        ([96.9, 97.1, 97.3], "reproduced"),
        ([95.9, 96.0, 96.1], "reproduced"),
        ([94.0, 95.0, 96.0], "inconclusive"),
        ([95.0, 95.1, 95.2], "inconclusive"),
        ([94.6, 94.7, 94.8], "not reproduced"),
    ],
)
def test_a_published_value_is_judged_by_the_interval(ours, verdict):
    word, d = stats.value_verdict(ours, 96.0, 1.0)
    assert word == verdict
    assert d is None if not ours else d.mean == pytest.approx(np.mean(ours) - 96)


def test_an_interval_that_touches_the_margin_from_below_is_inconclusive(monkeypatch):
    monkeypatch.setattr(stats, "t_interval", lambda v: stats.Interval(-2.0, -3.0, -1.0, 3))
    assert stats.value_verdict([1.0], 0.0, 1.0)[0] == "inconclusive"


def test_holm_leaves_contrasts_without_a_test_out_and_counts_those_declared():
    adjusted = stats.holm([math.nan, 0.001, 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.003, 0.02])
    assert stats.holm([0.001], declared=8) == pytest.approx([0.008])


@pytest.mark.parametrize(("spread", "bound", "n"), [(1.0, 1.0, 10), (1.0, 3.0, 4), (0.5, 1.0, 5), (1.0, 0.3, 90)])
def test_the_number_of_seeds_has_the_stated_power(spread, bound, n):
    """Checked against the exact power of the one-sample t test, from the noncentral t distribution."""
    i = stats.Interval(0.0, -9.0, 9.0, 4, spread / 2)
    assert stats.seeds_to_decide(i, bound) == stats.seeds_to_decide(i, -bound) == n

    def power(k):
        reach = scipy_stats.t.ppf(0.975, k - 1)
        return scipy_stats.nct.sf(reach, k - 1, bound / spread * math.sqrt(k))

    assert power(n) > 0.78
    assert power(n - 2) < 0.8


def test_the_number_of_seeds_may_be_unknown():
    assert stats.seeds_to_decide(stats.t_interval([1.0]), 0.0) is None
    assert stats.seeds_to_decide(stats.Interval(0.0, -1.0, 1.0, 3, 0.1), 0.0) is None
    assert stats.seeds_to_decide(stats.Interval(0.001, -1.0, 1.0, 3, 1.0), 0.0, most=100) is None


def test_intervals_know_their_standard_error():
    a, b = [1.0, 2.0, 4.0], [0.0, 0.5, 1.5, 3.0]
    assert stats.t_interval(a).error == pytest.approx(scipy_stats.sem(a))
    welch = stats.welch(a, b).difference
    assert welch.error == pytest.approx(math.hypot(scipy_stats.sem(a), scipy_stats.sem(b)))
