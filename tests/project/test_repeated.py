"""The page docs/history.md states how far repeated runs are from the recorded ones; here it is computed again."""

import re

import pandas
from paths import ROOT

from crbg.experiments import config, record_store


def test_repeated_runs_differ_as_stated():
    recorded = dict(record_store.recorded(config.read([ROOT / "config.yaml"])))
    again = pandas.read_csv(ROOT / "results/recorded/robustness.csv", comment="#", dtype={"digest": str})
    again = again[(again.measure == "accuracy") & (again["with"] == "clean")]
    assert len(again) == 60

    def difference(row):
        readings = recorded[row.digest][str(row.seed)]["evaluation"]["test"]["readings"]
        return row.value - readings["binary"]["accuracy"]

    found = again.apply(difference, axis=1)
    text = " ".join((ROOT / "docs/history.md").read_text().split())
    stated = re.search(r"differ by up to ([\d.]+) points. Means over ten seeds differ by at most ([\d.]+) points", text)
    assert float(stated[1]) == round(found.abs().max(), 2)
    assert float(stated[2]) == round(found.groupby(again.arm).mean().abs().max(), 2)
