"""The page docs/history.md states how far repeated runs are from the recorded ones; here it is computed again."""

import re

import pandas
from paths import ROOT


def test_repeated_runs_differ_as_stated():
    recorded = pandas.read_csv(ROOT / "results/results.csv", low_memory=False)
    recorded = recorded[(recorded.part == "test") & (recorded.reading == "binary")]
    again = pandas.read_csv(ROOT / "results/recorded/robustness.csv", comment="#")
    again = again[(again.measure == "accuracy") & (again["with"] == "clean")]
    both = again.merge(recorded, on=["experiment", "arm", "digest", "seed"])
    assert len(both) == len(again) == 60
    difference = (both.value - both.accuracy).groupby(both.arm)
    text = " ".join((ROOT / "docs/history.md").read_text().split())
    single, mean = re.search(
        r"differ by up to ([\d.]+) points. Means .* differ by at most ([\d.]+) points", text
    ).groups()
    assert float(single) == round(difference.apply(lambda d: d.abs().max()).max(), 2)
    assert float(mean) == round(difference.mean().abs().max(), 2)
