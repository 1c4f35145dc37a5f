import math

import pytest
import torch

from crbg import Mask
from crbg.errors import CrbgError
from crbg.search.budget import Budget

TOTALS = {"a": 1000, "b": 100}


def linear(limit, **options):
    """Return a budget in which a weight of `a` costs 1, one of `b` costs 20, and the rest 50."""
    return Budget(limit, "units", lambda counts: 50 + counts["a"][0] + 20 * counts["b"][0], **options)


def scores():
    torch.manual_seed(0)
    return {"a": torch.rand(10, 100), "b": torch.rand(100) + 0.3}


def test_the_first_density_meets_the_budget_if_it_is_the_same_everywhere():
    density = linear(650).first_density(TOTALS)
    assert 50 + 1000 * density + 20 * 100 * density == pytest.approx(650)
    assert linear(1550, largest=0.5).first_density(TOTALS) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("limit", "words"),
    [(51, "costs at least 53 units, more than 51"), (5000, "costs at most 3,050 units, less than 5,000")],
)
def test_budgets_out_of_reach_are_refused(limit, words):
    with pytest.raises(CrbgError, match=words):
        linear(limit).first_density(TOTALS)


def test_the_scale_depends_on_how_the_weights_are_distributed():
    assert linear(650).scale({"a": (200.0, 1000), "b": (5.0, 100)}) == pytest.approx(2.0)
    assert linear(650).scale({"a": (0.0, 1000), "b": (60.0, 100)}) == pytest.approx(0.5)


def test_the_cut_keeps_the_largest_scores_within_the_budget():
    budget, found = linear(650), scores()
    mask = budget.cut(found, 900)
    cost = budget.measure(mask)
    assert 0.98 * 650 <= cost <= 650
    kept, dropped = (torch.cat([found[n][mask[n] == keep] for n in found]) for keep in (True, False))
    assert kept.min() >= dropped.max()


@pytest.mark.parametrize("start", [1, 5, 300, 1100])
def test_the_cut_finds_its_way_although_the_estimate_is_off(start):
    def exact(mask):
        return 50 + mask["a"].sum().item() ** 1.2 + 35 * mask["b"].sum().item()

    budget = linear(900, exact=exact)
    assert 0.98 * 900 <= exact(budget.cut(scores(), start)) <= 900
    assert budget.ratio != 1.0


def test_a_cost_that_jumps_over_the_budget_ends_below_it():
    steps = Budget(10, "units", lambda counts: counts["w"][0], lambda mask: 7 * math.ceil(mask.kept / 5))
    mask = steps.cut({"w": torch.arange(20.0)}, 10)
    assert mask.kept == 5
    with pytest.raises(CrbgError, match="costs at most 3 units"):
        Budget(3, "units", lambda counts: counts["w"][0], lambda mask: 7.0).cut({"w": torch.arange(20.0)}, 10)


def test_weights_that_are_no_candidates_are_not_kept():
    mask = Budget(4, "units", lambda c: c["w"][0]).cut({"w": torch.tensor([math.nan, -math.inf, 3, 1, 2])[1:]}, 4)
    assert mask == Mask({"w": torch.tensor([False, True, True, True])})
