"""The states of runs and their summary; tests/integration/test_attempts.py tests how a run reaches each state."""

import json

import pytest
from records import made_up_record

from crbg.experiments import attempts, cells, estimates, record_store, status
from crbg.experiments import config as configs

CONFIG = """
experiments:
  tuning:
    role: tune
    targets: [section]
    seeds: [0, 1]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1}
    arms: {a: {method: crbg, grid: {density: [0.5, 0.2]}}}
  again:
    targets: [section]
    seeds: [0]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1}
    arms: {same: {method: crbg, set: {density: 0.5}}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return configs.read(["config.yaml"])


def put(config, cell, **record):
    where = record_store.run_folder(config, cell.spec, cell.seed)
    where.mkdir(parents=True)
    (where / "record.json").write_text(json.dumps(made_up_record(cell.spec, cell.seed, **record)))
    (where / "provenance.json").write_text("{}")


@pytest.fixture
def some(config):
    """Return four cells: one done, one collapsed, one failed and one missing."""
    done, collapsed, failed, _ = config.experiment("tuning").cells
    put(config, done, status="ok")
    put(config, collapsed, status="collapse", reason="the loss is not finite")
    where = record_store.run_folder(config, failed.spec, failed.seed)
    attempts.begin(where)
    attempts.end(where, attempts.DISK, OSError(28, "No space left on device"))
    return cells.choose_cells(config)


def texts(parts):
    return "\n\n".join(p for p in parts if isinstance(p, str))


def test_the_summary_has_a_line_for_each_experiment_and_counts_shared_runs_once(config, some):
    parts = status.summary(config, some, " --set x=y")
    assert parts[0] == "1 done, 1 collapsed, 0 running, 1 failed, 0 paused, 1 missing"
    table = parts[1]
    assert table.head == (
        "target",
        "experiment",
        "role",
        "runs",
        "done",
        "collapsed",
        "failed",
        "missing",
        "hours left",
    )
    assert [row[:8] for row in table.rows] == [
        ("section", "tuning", "tune", 4, 1, 1, 1, 1), ("", "again", "ablation", 1, 1, 0, 0, 0)
    ]  # fmt: skip
    assert table.total[:8] == ("total", "", "", 4, 1, 1, 1, 1)
    assert "`crbg status NAME` lists the runs" in texts(parts)


def test_the_summary_estimates_the_hours_of_unfinished_runs(config, some, monkeypatch):
    seconds = {c.key: 3600.0 * (i + 1) for i, c in enumerate(config.experiment("tuning").cells)}
    monkeypatch.setattr(estimates, "estimate_seconds", lambda *_: seconds)
    table = status.summary(config, some)[1]
    assert [row[-1] for row in table.rows] == ["7.00", "0.00"]  # hours of the third and the fourth cell
    assert table.total[-1] == "7.00"


def test_the_summary_explains_what_failed_and_lists_nothing_else(config, some):
    parts = status.summary(config, some)
    assert [row[0] for row in parts[3].rows] == ["failed"]
    assert "No space left on device" in texts(parts)


def test_a_collapse_says_that_it_asks_for_nothing(config, some):
    assert status.COLLAPSED in status.table(config, some)
    assert "nothing to repair" in status.COLLAPSED
    assert status.COLLAPSED not in status.table(config, some[:1])


def test_the_list_has_every_run_that_is_not_done_and_missing_ones_last(config, some):
    parts = status.table(config, some)
    assert [row[0] for row in parts[1].rows] == ["collapsed", "failed", "missing"]
    assert parts[1].rows[0][-1] == "the loss is not finite"
    (command,) = [p for p in parts if isinstance(p, str) and p.startswith("To execute only the unfinished runs")]
    assert command.count("crbg run tuning --where digest=") == 1
    assert command.endswith(" --seeds 0 1")


def test_many_experiments_are_named_instead_of_a_command_for_each(config, some, monkeypatch):
    monkeypatch.setattr(status, "MOST_COMMANDS", 0)
    text = texts(status.table(config, some, " --set x=y"))
    assert "`crbg run NAME --set x=y` executes the unfinished runs of one of these experiments:\n  tuning" in text


def test_long_lists_are_cut_and_say_so(config, some, monkeypatch):
    monkeypatch.setattr(status, "MOST_ROWS", 2)
    parts = status.table(config, some)
    assert len(parts[1].rows) == 2
    assert "... and 1 more" in parts
