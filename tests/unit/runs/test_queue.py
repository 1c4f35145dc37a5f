"""Lines printed about runs; tests/integration/test_attempts.py tests failures, waiting and deadlines."""

import json
from types import SimpleNamespace

import pytest

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.runs import execute, open_test_set, queue
from crbg.runs.setup import Workspace

CONFIG = """
experiments:
  one:
    role: main
    seeds: [0]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1, density: 0.5}
    arms:
      a: {method: crbg, grid: {scale: [0.2, 0.3], options.lr: [0.01]}}
      b: {method: edge_popup}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return configs.read(["config.yaml"])


def test_lines_of_runs_say_in_which_settings_they_differ(config, monkeypatch, capsys, digits):
    record = SimpleNamespace(density=0.5, missed_density=False, value=lambda: 90.0, controls=dict)
    monkeypatch.setattr(execute, "execute", lambda spec, seed, workspace, clock: record)
    cells = list(config.experiment("one").cells)
    assert queue.search(Workspace(config.results, loaded={"digits": digits}), config, cells, 60.0) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    a, b = cells[0].spec.slug(), cells[2].spec.slug()
    assert names[0] == f"a {a} seed 0 (scale=0.2)"
    assert names[1].endswith("(scale=0.3)")
    assert names[2] == f"b {b} seed 0"


def test_a_failed_run_is_named_with_its_settings(config, monkeypatch, capsys, digits):
    def fail(*_):
        raise CrbgError("it is wrong")

    monkeypatch.setattr(execute, "execute", fail)
    cells = config.experiment("one").cells[:1]
    assert queue.search(Workspace(config.results, loaded={"digits": digits}), config, cells, 60.0) == queue.FAILED
    out = capsys.readouterr().out
    assert f"a {cells[0].spec.slug()} seed 0 (scale=0.2): FAILED: it is wrong\n" in out
    assert "1 of 1 runs failed" in out


def test_the_test_set_opens_for_nothing_that_is_not_selected(config, monkeypatch):
    opened = []
    monkeypatch.setattr(open_test_set, "evaluate", lambda spec, seed, workspace: opened.append(spec))
    monkeypatch.setattr(queue, "bench", lambda config: SimpleNamespace())
    done = {"record": {}}
    find = lambda config, spec, seed, evaluated=False: None if evaluated else done  # noqa: E731
    monkeypatch.setattr(queue.record_store, "find", find)
    cells = config.experiment("one").cells
    with pytest.raises(CrbgError, match=r"run `crbg select`, which writes paper/selected\.yaml"):
        queue.evaluate(config, cells, "crbg select")
    assert not opened
    chosen = {"evaluate": {"one": {cells[2].spec.digest(): cells[2].spec.slug()}}}
    (config.paper).mkdir()
    (config.paper / "selected.yaml").write_text(json.dumps(chosen))
    queue.evaluate(config, [cells[2]], "crbg select")
    assert opened == [cells[2].spec]
    with pytest.raises(CrbgError, match="is not listed"):
        queue.evaluate(config, cells, "crbg select")
    assert len(opened) == 1
    done.clear()
    with pytest.raises(CrbgError, match=r"one: 1 of 1 runs are not done; `crbg run one` runs them"):
        queue.evaluate(config, [cells[2]], "crbg select")
