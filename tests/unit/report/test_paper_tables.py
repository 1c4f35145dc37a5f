from types import SimpleNamespace

import pandas as pd
from made_up import around

from crbg.report import paper_tables
from crbg.report.claims import Judgement
from crbg.report.documents import TELLING
from crbg.report.records_table import tidy


def test_the_telling_verdicts_are_listed_with_their_evidence():
    shown = Judgement(TELLING[0], "thesis, table", "“96% at 45%”", "exceeded", "97.65 %, n = 10")
    other = Judgement("another", "s", "q", "exceeded", "1")
    text = paper_tables.telling([other, shown])
    assert r"1. 96\% at 45\% (thesis) & exceeded & 97.65 \%, n = 10 \\" in text
    assert "another" not in text


def test_tuning_counts_the_trials_at_each_density(project):
    project.put("ours", 0.5, [80.0, 82.0], experiment="tuning", tested=False)
    project.put("ours", 0.1, [70.0], experiment="tuning", tested=False)
    text = paper_tables.tuning(tidy(project.config), project.config)
    assert r"tuning & ours & 50: 1; 90: 1 & 1 & 2 \\" in text
    assert r"\begin{longtable}" in text
    assert r"\endhead" in text


def test_deep_networks_are_observed_at_their_epochs(project):
    assert "no runs in this version" in paper_tables.deep(tidy(project.config), project.config)
    project.put("ours", 0.5, around(90.0))
    rows = tidy(project.config)
    rows = rows.assign(experiment="deep_x", epochs=7)
    rows = pd.concat([rows.assign(digest="0", value=rows.value - 10), rows])
    config = SimpleNamespace(experiments={"deep_x": SimpleNamespace(labels={"ours": "our arm"}, role="main")})
    (line,) = [li for li in paper_tables.deep(rows, config).splitlines() if "our arm" in li]
    assert line.endswith(r"& our arm & 50.0 & 90.00 $\pm$ 0.13 & test & 7 \\")
    other = rows[rows.part == "validation"].assign(arm="theirs")  # not evaluated on the test set
    (line,) = [li for li in paper_tables.deep(pd.concat([rows, other]), config).splitlines() if "theirs" in li]
    assert "& validation & 7" in line


def test_the_width_table_pairs_published_points_with_sizes(sweep, monkeypatch):
    monkeypatch.setattr(paper_tables, "read_published", lambda: {"width": [{"weights": 98.0, "accuracy": 96.0}]})
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(96), gated=1000)
    text = paper_tables.width(tidy(sweep.config), sweep.config.experiment("widths"))
    assert r"100.0 & 96 & 96.00 $\pm$ 0.13 \\" in text
