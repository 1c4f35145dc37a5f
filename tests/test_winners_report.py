"""Tables, figure, numbers and verdicts of winning tickets, from made-up records."""

from pathlib import Path

import pytest
import yaml

from crbg import config as configs
from crbg import store
from crbg.files import write_json
from crbg.report import claims, figures, numbers, tables, winners
from crbg.report.tidy import tidy

SEEDS = [0, 1, 2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arms = {
        "cts": {"method": "cts", "set": {"options.search": 1}, "grid": {"density": [0.5, 0.1]}},
        "ltr": {"method": "imp", "grid": {"density": [0.5, 0.1]}},
        "snip": {"method": "saliency", "set": {"density": 0.1}, "grid": {"options.control": ["none", "shuffle"]}},
        "dense": {"method": "imp", "set": {"density": 1.0}},
    }
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}
    one = {"about": "winners", "role": "main", "view": "winners", "seeds": SEEDS, "base": base, "arms": arms}
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": {"one": one}}))
    return configs.read(["config.yaml"])


def put(config, arm, density, accuracy, seconds=10.0, objectives=None, control="none", device="a CPU", step=1):
    for i, seed in enumerate(SEEDS):
        cell = next(
            c for c in config.experiment("one").cells
            if (c.arm, c.spec.density, c.seed) == (arm, density, seed) and c.spec.resolved().control == control
        )  # fmt: skip
        readings = {
            "binary": {"accuracy": accuracy + step * i, "density": density, "recalibrated": accuracy - 1},
            "untrained": {"accuracy": accuracy / 2, "density": density, "without_recalibration": 10.0},
        }
        record = {"digest": cell.spec.digest(), "status": "ok", "digests": {"draw": str(seed), "order": str(seed)}}
        record |= {"validation": {"readings": readings}, "roles": {"trained": ["fc1.weight"]}}
        if objectives:
            record["anatomy"] = {"objectives": {k: v + i for k, v in objectives.items()}}
        where = store.run_folder(config, cell.spec, seed)
        write_json(where / "record.json", record)
        write_json(where / "provenance.json", {"revision": "abc", "device": device, "search_seconds": seconds * 1.01**i})
        write_json(where / "evaluation.json", {"test": {"readings": readings}})


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
    put(project, "snip", 0.1, 80.0, objectives={"loss": 3.0})
    put(project, "snip", 0.1, 80.0, objectives={"loss": 100.0}, control="shuffle")
    put(project, "dense", 1.0, 80.0, objectives={"loss": 0.0})
    table = winners.objectives(project, project.experiment("one"))
    wide, sparse = table.to_dict("records")
    assert (wide["arm"], wide["sparsity %"], wide["loss"], wide["reverse KL"], wide["n"]) == ("cts", "50", "2", "1.25", "3")
    assert (sparse["arm"], sparse["loss"], sparse["reverse KL"]) == ("snip", "4", "not finite")
    assert len(table) == 2


def test_the_figure_sets_published_points_beside_measured_ones(project, monkeypatch, tmp_path):
    for density, accuracy in ((0.5, 90.0), (0.1, 80.0)):
        put(project, "cts", density, accuracy)
        put(project, "ltr", density, accuracy - 5, seconds=100.0)
    put(project, "dense", 1.0, 95.0)
    seen = []
    real = figures.plt.close
    monkeypatch.setattr(figures.plt, "close", lambda f: seen.append(f) or None)
    published = {"winners": {"one": {"cts": {0.1: 83.0, 0.5: 91.0}}}}
    path = figures.draw(tidy(project), project.experiment("one"), tmp_path / "f", False, published)
    left, right = seen[0].axes
    hollow = [line for line in left.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [list(zip(h.get_xdata(), h.get_ydata(), strict=True)) for h in hollow] == [[(0.1, 83.0), (0.5, 91.0)]]
    measured = [c.lines[0] for c in right.containers]
    assert [round(float(m.get_xdata()[0])) for m in measured] == [10, 101]
    assert "dense: 96.0 %" in " ".join(t.get_text() for t in seen[0].legends[0].get_texts())
    assert path.with_name("f.png").stat().st_size > 5000
    real("all")


@pytest.mark.parametrize(("theirs", "word"), [(130.0, "reproduced"), (50.0, "not reproduced"), (109.5, "inconclusive")])
def test_cheaper_compares_seconds_on_one_machine(project, theirs, word):
    put(project, "cts", 0.1, 80.0, seconds=10.0)
    put(project, "ltr", 0.1, 80.0, seconds=theirs)
    rule = {"type": "cheaper", "experiment": "one", "arm": "cts", "reference": "ltr", "density": 0.1, "times": 12.0}
    verdict, evidence = claims.RULES["cheaper"](rule, tidy(project))
    assert verdict == word
    assert f"{theirs / 10:.1f} times" in evidence
    put(project, "ltr", 0.1, 80.0, seconds=theirs, device="another")
    assert claims.RULES["cheaper"](rule, tidy(project)) == ("not run", "the runs were timed on different machines")


def test_better_than_others_at_several_densities(project):
    put(project, "cts", 0.5, 90.0)
    put(project, "ltr", 0.5, 80.0)
    rule = {"type": "best", "experiment": "one", "arm": "cts", "others": ["ltr"], "density": [0.5, 0.1]}
    assert claims.RULES["best"](rule, tidy(project))[0] == "not run"
    put(project, "cts", 0.1, 80.0)
    for theirs, word in ((60.0, "reproduced"), (80.2, "inconclusive"), (95.0, "not reproduced")):
        put(project, "ltr", 0.1, theirs, step=-1)
        verdict, evidence = claims.RULES["best"](rule, tidy(project))
        assert verdict == word
        assert "cts at 0.5" in evidence
        assert "cts at 0.1" in evidence


def test_a_loss_may_be_against_the_same_density(project):
    put(project, "cts", 0.1, 80.0)
    put(project, "ltr", 0.1, 80.0)
    put(project, "ltr", 0.5, 99.0)
    rule = {"experiment": "one", "arm": "cts", "reference": "ltr", "density": 0.1, "reference_density": 0.1, "most": 3.0}
    assert claims.RULES["loss"](rule, tidy(project))[0] == "reproduced"
    assert claims.RULES["loss"]({**rule, "reference_density": 0.5}, tidy(project))[0] == "not reproduced"


def test_published_points_belong_to_experiments_and_arms_that_exist(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    real = configs.read(["config.yaml"])
    for name, arms in yaml.safe_load(Path("paper/published.yaml").read_text())["winners"].items():
        assert set(arms) <= {c.arm for c in real.experiment(name).cells}
        assert real.experiment(name).view == "winners"
