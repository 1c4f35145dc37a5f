"""Tables, figures, rules and choices of experiments whose metric is not accuracy."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml
from made_up import GOOD, ruled
from records import made_up_evaluation, made_up_record

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import record_store, selection
from crbg.report import claims, numbers, tables
from crbg.report.figures import curves
from crbg.report.records_table import metric_of, tidy
from crbg.report.tables import headline, main_table, markdown, tuning_trials
from crbg.storage.atomic import write_json

BASE = {"data": "toy_series", "model": "lenet-16", "epochs": 2, "batch": 64}
GRID = {"density": [0.5, 0.1]}
EXPERIMENTS = {
    "tuning": {
        "role": "tune", "seeds": [0, 1], "groups": {0.5: [0.5, 0.1]}, "base": BASE,
        "arms": {"ours": {"method": "crbg", "grid": {"density": [0.5], "options.lr": [0.01, 0.02]}}},
    },
    "main": {
        "about": "series", "role": "main", "view": "curve", "seeds": [5, 6, 7], "base": BASE,
        "arms": {
            "ours": {"method": "crbg", "grid": GRID},
            "theirs": {"method": "edge_popup", "set": {"options.scaled": False}, "grid": GRID},
            "random": {"method": "random", "set": {"epochs": 0}, "grid": GRID},
            "dense": {"method": "dense"},
        },
    },
}  # fmt: skip
LEVELS = {"ours": 0.2, "theirs": 0.25, "random": 0.9, "dense": 0.18}


def put(config, cell, value):
    where = record_store.run_folder(config, cell.spec, cell.seed)
    binary = {"mse": value, "density": cell.spec.density or 1.0}
    part = {
        "readings": {"binary": binary},
        "density_missed": False,
        "constant": 1.0,
        "naive": {"persistence": 0.3, "ridge": 0.24},
    }
    write_json(where / "record.json", made_up_record(cell.spec, cell.seed, schema=2, validation=part))
    write_json(where / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 2.0})
    write_json(where / "evaluation.json", made_up_evaluation(cell.spec, cell.seed, part))


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": EXPERIMENTS}, sort_keys=False))
    config = configs.read(["config.yaml"])
    for c in config.experiment("main").cells:
        put(config, c, LEVELS[c.arm] + c.seed / 1e4)
    return config


def test_the_smallest_mean_error_is_chosen(config):
    tuning = config.experiment("tuning")
    for c in tuning.cells:
        put(config, c, 0.4 if c.spec.resolved().lr == 0.01 else 0.5)
    (choice,) = selection.suggest(config, tuning)["ours"]
    assert choice["set"] == {"options.lr": 0.01}
    assert choice["validation"] == 0.4


def test_the_table_has_no_per_cent_and_four_digits(config):
    rows = tidy(config)
    assert metric_of(rows).key == "mse"
    table = main_table(rows, "main")
    assert "binary" in table
    assert "binary %" not in table
    assert table.binary[0] == "0.2006 ± 0.0002"
    text = markdown(table, config.experiment("main"), config, rows)
    assert "test mean squared error, mean ±" in text
    naive = "persistence 0.3000, ridge 0.2400, a constant 1.0000"
    assert f"Naive predictors on the same part: {naive}. A smaller value is better." in text


def test_the_best_ticket_has_the_smallest_error(config):
    best = tables.best_tickets(tidy(config), "main")
    assert list(best.arm) == ["ours", "theirs", "random"]
    known = numbers._of_experiment(tidy(config), config.experiment("main"))
    assert known["main.naive.persistence"] == "0.3000"
    assert known["main.ours.0.5"] == "0.2006 ± 0.0002"


def test_the_figure_shows_small_errors_and_names_the_others(config):
    mine = headline(tidy(config), "main")
    curves.curve(mine, [], config.experiment("main").labels)
    axes = plt.gca()
    low, high = axes.get_ylim()
    assert low < 0.18 < 0.25 < high < 0.5
    assert axes.get_ylabel() == "test mean squared error"
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert any("0.9006 (above)" in t for t in texts)
    assert "ridge" in [t.get_text() for t in axes.texts]
    assert "persistence: 0.3000" in texts, "more than half worse than the best arm"
    plt.close()


def test_rules_know_the_direction(config):
    rows = tidy(config)
    best = {"type": "best", "experiment": "main", "density": 0.5}
    word, evidence = ruled(best | {"arm": "ours", "others": ["theirs"]}, rows)
    assert (word, evidence.split(";")[0]) == ("reproduced", "ours at 0.5: +0.0500 [+0.0500, +0.0500] against theirs")
    assert ruled(best | {"arm": "theirs", "others": ["ours"]}, rows)[0] == "not reproduced"
    loss = {"type": "loss", "experiment": "main", "arm": "ours", "density": 0.5, "reference": "dense", "most": 0.03}
    word, evidence = ruled(loss, rows)
    assert word == "reproduced"
    assert "dense - ours = +0.0200 in the mean squared error" in evidence
    assert ruled(loss | {"most": 0.01}, rows)[0] == "not reproduced"


def test_a_rule_for_accuracies_is_refused(config):
    rule = {
        "type": "lead",
        "experiment": "main",
        "arm": "ours",
        "density": 0.5,
        "other": "theirs",
        "by": 1,
        "margin": 1,
    }
    declared = claims.parse_claims({"claims": [GOOD | {"rule": rule}], "contrasts": []})
    with pytest.raises(CrbgError, match="claim a: the rule 'lead' judges accuracies, not mean squared error; use "):
        claims.judge(declared, tidy(config), config)


def test_a_floor_of_an_error_is_a_ceiling(config):
    floor = {"type": "floor", "experiment": "main", "arm": "ours", "density": 0.5}
    assert ruled(floor | {"least": 0.21}, tidy(config)) == (
        "reproduced",
        "0.2006 [0.2004, 0.2008], at most 0.21 required, n = 3",
    )
    assert ruled(floor | {"least": 0.19}, tidy(config))[0] == "not reproduced"


def test_trials_are_listed_from_the_smallest_error(config):
    tuning = config.experiment("tuning")
    for c in tuning.cells:
        put(config, c, 0.4 if c.spec.resolved().lr == 0.02 else 0.50004)
    trials = tuning_trials(tidy(config))
    assert list(trials.validation) == ["0.4000", "0.5000"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": "methods"}, r"main.view: only `curve`, `dots` and `representation` show mse, not 'methods'"),
        (
            {"arms": {"a": {"method": "dense"}, "b": {"method": "dense", "set": {"data": "digits"}}}},
            "metrics of its arms",
        ),
    ],
)
def test_experiments_that_mix_metrics_are_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": {"main": EXPERIMENTS["main"] | change}}))
    with pytest.raises(CrbgError, match=message):
        configs.read(["config.yaml"])
