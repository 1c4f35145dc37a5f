"""Tables, figures, numbers and verdicts on winning tickets, from synthetic records."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml
from made_up import ruled
from paths import ROOT
from records import made_up_evaluation, made_up_record

from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.report import figures, numbers, tables, winners
from crbg.report.published import Published
from crbg.report.records_table import tidy
from crbg.storage.atomic import write_json

SEEDS = [0, 1, 2]
PAIR = {"type": "loss", "experiment": "one", "arm": "cts", "reference": "ltr"}
CTS_AGAINST_LTR = PAIR | {"density": 0.1, "reference_density": 0.1}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arms = {
        "cts": {"method": "cts", "set": {"options.search": 1}, "grid": {"density": [0.5, 0.1]}},
        "ltr": {"method": "imp", "grid": {"density": [0.5, 0.1]}},
        "snip": {
            "method": "saliency",
            "set": {"density": 0.1},
            "grid": {"options.control": ["none", "shuffle", "invert"]},
        },
        "dense": {"method": "imp", "set": {"density": 1.0}},
    }
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}
    one = {"about": "winners", "role": "main", "view": "winners", "seeds": SEEDS, "base": base, "arms": arms}
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": {"one": one}}))
    return configs.read(["config.yaml"])


def put(config, arm, density, accuracy, seconds=10.0, objectives=None, control="none", device="a CPU", step=1):
    for i, seed in enumerate(SEEDS):
        wanted = (arm, density, seed, control)
        cells = config.experiment("one").cells
        cell = next(c for c in cells if (c.arm, c.spec.density, c.seed, c.spec.resolved().control) == wanted)
        readings = {
            "binary": {"accuracy": accuracy + step * i, "density": density, "recalibrated": accuracy - 1},
            "untrained": {"accuracy": accuracy / 2, "density": density},
        }
        record = made_up_record(cell.spec, seed, validation={"readings": readings}, roles={"trained": ["fc1.weight"]})
        if objectives:
            record["anatomy"] = {"objectives": {k: v if v is None else v + i for k, v in objectives.items()}}
        where = record_store.run_folder(config, cell.spec, seed)
        write_json(where / "record.json", record)
        write_json(
            where / "provenance.json", {"revision": "abc", "device": device, "search_seconds": seconds * 1.01**i}
        )
        write_json(where / "evaluation.json", made_up_evaluation(cell.spec, seed, {"readings": readings}))


def test_the_table_shows_tickets_before_and_after_their_training(project):
    put(project, "cts", 0.1, 80.0)
    table = tables.main_table(tidy(project), "one")
    (line,) = table.to_dict("records")
    assert (line["binary %"], line["untrained %"], line["recalibrated %"]) == ("81.00 ± 2.48", "40.00 ± 0.00", "79.00")
    assert line["trained"] == "weights"
    assert not {"reinit %", "not recalibrated %", "exact %", "mean %"} & set(table.columns)
    rows = tidy(project)
    text = tables.markdown(table, project.experiment("one"), project, rows)
    assert "These are winning tickets" in text
    assert "winning tickets, trained under their masks" in tables.readme_table(project.experiment("one"), rows)


def test_the_paper_can_quote_them(project):
    put(project, "cts", 0.1, 80.0, seconds=100.0)
    known = numbers.collect(tidy(project), [], project)
    assert known["one.cts.0.1.untrained"] == "40.00 ± 0.00"
    assert known["one.cts.0.1.seconds"] == "101"


def test_objectives_are_means_of_tickets_without_a_control(project):
    put(project, "cts", 0.5, 80.0, objectives={"loss": 1.0, "kl": 0.25})
    put(project, "snip", 0.1, 80.0, objectives={"loss": 3.0, "feature": None})
    put(project, "snip", 0.1, 80.0, objectives={"loss": 100.0}, control="shuffle")
    put(project, "dense", 1.0, 80.0, objectives={"loss": 0.0})
    table = winners.objectives(winners.measured(project, project.experiment("one")))
    wide, sparse = table.to_dict("records")
    assert (wide["arm"], wide["sparsity %"], wide["loss"], wide["reverse KL"], wide["n"]) == (
        "cts",
        "50",
        "2",
        "1.25",
        "3",
    )
    assert (sparse["arm"], sparse["loss"], sparse["reverse KL"]) == ("snip", "4", "not measured")
    assert (sparse["features"], wide["features"]) == ("not finite", "not measured")
    assert len(table) == 2


@pytest.mark.parametrize("panels", [True, False])
def test_the_figure_sets_published_points_beside_measured_ones(project, monkeypatch, tmp_path, panels):
    monkeypatch.setattr(figures.views, "MOST_PANELS", 2 if panels else 1)
    for density, accuracy in ((0.5, 90.0), (0.1, 80.0)):
        put(project, "cts", density, accuracy)
        put(project, "ltr", density, accuracy - 5, seconds=100.0)
    put(project, "dense", 1.0, 95.0)
    put(project, "snip", 0.1, 70.0)
    put(project, "snip", 0.1, 60.0, control="shuffle")  # an arm with two settings at one density is not plotted there
    seen = []
    real = plt.close
    monkeypatch.setattr(plt, "close", lambda f: seen.append(f) or None)
    published = Published(winners={"cts": {0.1: 83.0, 0.5: 91.0}})
    path = figures.draw(tidy(project), project.experiment("one"), tmp_path / "f", published, False)
    assert path.with_name("f.png").stat().st_size > 5000
    if panels:
        half, tenth, seconds = seen[0].axes
        for axes, theirs in ((half, 91.0), (tenth, 83.0)):
            hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
            assert [list(line.get_xdata()) for line in hollow] == [[theirs]]
        assert [t.get_text() for t in half.get_yticklabels()] == ["ltr", "cts"]  # `snip` has two settings
        assert sorted(round(float(line.get_xdata()[0])) for line in seconds.lines) == [10, 10, 101, 101]
        assert "dense 96.0" in seen[0].get_supxlabel()
        return real("all")
    left, right = seen[0].axes
    hollow = [line for line in left.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [list(zip(h.get_xdata(), h.get_ydata(), strict=True)) for h in hollow] == [[(0.1, 83.0), (0.5, 91.0)]]
    measured = [c.lines[0] for c in right.containers]
    assert [round(float(m.get_xdata()[0])) for m in measured] == [10, 101]
    assert "dense: 96.0 %" in " ".join(t.get_text() for t in seen[0].legends[0].get_texts())
    real("all")


def test_the_figure_of_objectives_has_a_panel_for_each_and_leaves_out_what_is_not_finite(
    project, monkeypatch, tmp_path
):
    put(project, "cts", 0.5, 80.0, objectives={"loss": 1.0, "kl": 0.25})
    put(project, "cts", 0.1, 80.0, objectives={"loss": 2.0, "kl": 0.5})
    put(project, "snip", 0.1, 80.0, objectives={"loss": 3.0})
    seen = []
    real = plt.close
    monkeypatch.setattr(plt, "close", lambda f: seen.append(f) or None)
    found = winners.measured(project, project.experiment("one"))
    path = figures.by_objective(found, {"loss": "loss", "kl": "reverse KL"}, tmp_path / "o", False, {"snip": "SNIP"})
    loss, kl = seen[0].axes[:2]
    # The plotted values are means of i + value, at density 0.5 and then at 0.1; SNIP has the lowest row.
    drawn = [tuple(float(v[0]) for v in c.lines[0].get_data()) for c in loss.containers]
    assert drawn == [(2.0, 1.0), (3.0, 1.0), (4.0, 0.0)]
    assert [t.get_text() for t in loss.get_yticklabels()] == ["SNIP", "cts"]
    assert [float(c.lines[0].get_xdata()[0]) for c in kl.containers] == [1.25, 1.5]
    assert [t.get_text() for t in seen[0].legends[0].get_texts()] == ["50 % sparse", "90 % sparse"]
    assert path.with_name("o.png").stat().st_size > 5000
    real("all")


def test_tickets_pass_where_every_control_is_worse(project):
    put(project, "snip", 0.1, 80.0)
    rule = {"type": "passes", "experiment": "one", "arm": "snip", "density": 0.1}
    assert ruled(rule, tidy(project))[0] == "not run"
    for controlled, word, opposite in ((70.0, "reproduced", "not reproduced"), (85.0, "not reproduced", "reproduced")):
        put(project, "snip", 0.1, controlled, control="shuffle")
        verdict, evidence = ruled(rule, tidy(project))
        assert (verdict, f"shuffle costs {80 - controlled:.2f}" in evidence) == (word, True)
        assert ruled({**rule, "fail": True}, tidy(project))[0] == opposite
    put(project, "snip", 0.1, 82.0, control="shuffle", step=-1)  # the three pairs are (82, 80), (81, 81), (80, 82)
    assert ruled(rule, tidy(project))[0] == "inconclusive"
    put(project, "snip", 0.1, 70.0, control="invert")  # it must be worse under every control, not just one
    assert ruled(rule, tidy(project))[0] == "inconclusive"
    put(project, "snip", 0.1, 85.0, control="shuffle")
    assert ruled(rule, tidy(project))[0] == "not reproduced"
    put(project, "snip", 0.1, 70.0, control="shuffle")
    assert ruled(rule, tidy(project))[0] == "reproduced"
    put(project, "snip", 0.1, 79.6, control="shuffle")  # worse for every seed, but by less than the margin
    assert ruled(rule, tidy(project))[0] == "not reproduced"
    put(project, "snip", 0.1, 79.4, control="shuffle")
    assert ruled(rule, tidy(project))[0] == "reproduced"


def test_the_same_seeds_are_compared_in_pairs(project):
    # Each pair of 80, 82, 84 and 80.5, 82.5, 84.5 differs by half a point, which Welch's test could not detect.
    put(project, "cts", 0.1, 80.0, step=2)
    put(project, "ltr", 0.1, 80.5, step=2)
    rule = CTS_AGAINST_LTR | {"most": 0.6}
    verdict, evidence = ruled(rule, tidy(project))
    assert verdict == "reproduced"
    assert "+0.50 points [+0.50, +0.50]" in evidence


def test_on_validation_an_arm_stands_at_its_best_setting(project):
    put(project, "cts", 0.1, 80.0)
    put(project, "snip", 0.1, 70.0)
    put(project, "snip", 0.1, 90.0, control="shuffle")
    rule = {"type": "best", "experiment": "one", "arm": "cts", "others": ["snip"], "density": 0.1, "part": "validation"}
    verdict, evidence = ruled(rule, tidy(project))
    assert verdict == "not reproduced"
    assert "-10.00 against snip" in evidence or "-10.00 [" in evidence
    assert "validation" in evidence


@pytest.mark.parametrize(
    ("expected", "word"), [(0.115, "reproduced"), (0.13, "not reproduced"), (0.08, "not reproduced")]
)
def test_flat_asks_for_the_budget_too(project, expected, word):
    rows = []
    for slack, share in (("1.1", 0.11), ("1.3", expected)):
        row = {"experiment": "one", "arm": "cts", "part": "validation", "reading": "binary"}
        row |= {"setting": f"slack {slack}", "over": share / 0.11 - 1}
        rows += [row | {"seed": s, "value": 80.0 + 0.01 * s} for s in SEEDS]
    rule = {"type": "flat", "experiment": "one", "arm": "cts", "most": 1.0, "over": 0.1}
    verdict, evidence = ruled(rule, pd.DataFrame(rows))
    assert verdict == word
    assert f"{100 * (expected / 0.11 - 1):+.1f} % off the budget at slack 1.3" in evidence
    assert ruled({**rule, "over": 9.9}, pd.DataFrame(rows))[0] == "reproduced"


@pytest.mark.parametrize(("theirs", "word"), [(130.0, "reproduced"), (50.0, "not reproduced"), (109.5, "inconclusive")])
def test_cheaper_compares_seconds_on_one_machine(project, theirs, word):
    put(project, "cts", 0.1, 80.0, seconds=10.0)
    put(project, "ltr", 0.1, 80.0, seconds=theirs)
    for i, seed in enumerate(SEEDS):  # the ratio of run times differs between pairs
        cell = next(c for c in project.experiment("one").cells if (c.arm, c.spec.density, c.seed) == ("ltr", 0.1, seed))
        times = {"revision": "abc", "device": "a CPU", "search_seconds": theirs * 1.01 ** (2 * i - 1)}
        write_json(record_store.run_folder(project, cell.spec, seed) / "provenance.json", times)
    rule = {"type": "cheaper", "experiment": "one", "arm": "cts", "reference": "ltr", "density": 0.1, "times": 12.0}
    verdict, evidence = ruled(rule, tidy(project))
    assert verdict == word
    assert f"{theirs / 10:.1f} times" in evidence
    put(project, "ltr", 0.1, 80.0, seconds=theirs, device="another")
    assert ruled(rule, tidy(project)) == ("not run", "the runs were timed on different machines")


def test_better_than_others_at_several_densities(project):
    put(project, "cts", 0.5, 90.0)
    put(project, "ltr", 0.5, 80.0)
    rule = {"type": "best", "experiment": "one", "arm": "cts", "others": ["ltr"], "density": [0.5, 0.1]}
    assert ruled(rule, tidy(project))[0] == "not run"
    put(project, "cts", 0.1, 80.0)
    for theirs, word in ((60.0, "reproduced"), (80.2, "inconclusive"), (95.0, "not reproduced")):
        put(project, "ltr", 0.1, theirs, step=-1)
        verdict, evidence = ruled(rule, tidy(project))
        assert verdict == word
        assert "cts at 0.5" in evidence
        assert "cts at 0.1" in evidence


def test_a_loss_may_be_against_the_same_density(project):
    put(project, "cts", 0.1, 80.0)
    put(project, "ltr", 0.1, 80.0)
    put(project, "ltr", 0.5, 99.0)
    rule = CTS_AGAINST_LTR | {"most": 3.0}
    assert ruled(rule, tidy(project))[0] == "reproduced"
    assert ruled({**rule, "reference_density": 0.5}, tidy(project))[0] == "not reproduced"


def test_published_points_belong_to_experiments_and_arms_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    real = configs.read(["config.yaml"])
    for name, arms in yaml.safe_load(Path("paper/published.yaml").read_text())["winners"].items():
        assert set(arms) <= {c.arm for c in real.experiment(name).cells}
        assert real.experiment(name).view in ("winners", "dots")
