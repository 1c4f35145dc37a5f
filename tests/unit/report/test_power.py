"""The number of seeds that decides an inconclusive verdict, and the hours that they take."""

import pytest
from made_up import GOOD, around

from crbg.experiments import estimates
from crbg.report import claims, power, stats
from crbg.report.records_table import tidy
from crbg.report.rules.base import Check, Verdict

BEST = {"type": "best", "experiment": "main", "arm": "ours", "density": 0.5, "others": ["theirs", "quiet"]}


def interval(mean, error=1.0, n=4):
    reach = stats.t_reach(error, n)
    return stats.Interval(mean, mean - reach, mean + reach, n, error)


@pytest.mark.parametrize(
    ("means", "every", "decides", "word"),
    [
        ((1.0, 2.0), True, 1.0, "reproduced"),  # all checks must hold, so the closest one needs the most seeds
        ((1.0, 5.0), True, 1.0, "reproduced"),  # the second check holds already
        ((-1.0, 2.0), True, -1.0, "not reproduced"),  # one failing check is enough
        ((-1.0, -2.0), True, -2.0, "not reproduced"),
        ((-1.0, -2.0), False, -1.0, "not reproduced"),  # one check must hold, so all must fail
        ((-1.0, 2.0), False, 2.0, "reproduced"),
    ],
)
def test_the_check_that_decides_gives_the_number(means, every, decides, word):
    found = Verdict("inconclusive", "", checks=tuple(Check(interval(m), 0.0) for m in means), every=every)
    assert found.decision() == (stats.seeds_to_decide(interval(decides), 0.0), word)
    below = tuple(Check(interval(-m), 0.0, above=False) for m in means)
    assert Verdict("inconclusive", "", checks=below, every=every).decision() == found.decision()


def table(project, **more):
    declared = claims.parse_claims({"claims": [GOOD | {"rule": BEST, "declared": "before"} | more]})
    found = claims.judge(declared, tidy(project.config), project.config)
    return power.power_table(declared, found, project.config), found[0]


def test_hours_are_those_of_the_missing_seeds_of_all_compared_arms(project, monkeypatch):
    assert "No verdict is inconclusive." in table(project)[0]
    project.put("ours", 0.5, around(90.3, 0.3))
    project.put("theirs", 0.5, around(90.0, 0.3), draw="x")
    project.put("quiet", 0.5, around(80.0), draw="x")
    costs = {"ours": 3600.0, "quiet": 1800.0, "theirs": 600.0}
    asked = []

    def cost(config, cells, gpu):
        asked.extend((c.arm, c.spec.density) for c in cells)
        return {c.key: costs[c.arm] for c in cells}

    monkeypatch.setattr(estimates, "estimate_seconds", cost)
    text, judged = table(project)
    assert judged.verdict == "inconclusive"
    needed, word = judged.found.decision()
    assert word == "reproduced"
    assert sorted(asked) == [("ours", 0.5), ("quiet", 0.5), ("theirs", 0.5)]
    row = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert row == ["a", "inconclusive", "4", str(needed), "reproduced", f"{(needed - 4) * 6000 / 3600:.1f}", ""]


def test_a_short_or_untuned_search_is_no_question_of_seeds(project):
    project.put("ours", 0.5, around(80.0))
    project.put("theirs", 0.5, around(90.0))
    project.put("quiet", 0.5, around(90.0))
    second = {"type": "floor", "experiment": "main", "arm": "ours", "density": 0.1, "least": 1.0}
    row = table(project, second=second)[0].splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["a", "inconclusive: second reading", "4", "not a question of seeds", "", "", "main"]
