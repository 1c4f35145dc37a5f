import pytest

from crbg.data.corruptions import CORRUPTIONS, corrupted
from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments.record_store import record_robustness, robustness_file, run_folder
from crbg.masks.overlap import jaccard
from crbg.runs import robustness as measured
from crbg.runs.artifacts import rebuild
from crbg.runs.execute import execute
from crbg.runs.open_test_set import evaluate
from crbg.runs.provenance import revision
from crbg.runs.robustness import COLUMNS, robustness, text
from crbg.runs.setup import Workspace
from crbg.ticket import Ticket

CONFIG = """
robustness: {one: [arm=a]}
experiments:
  one:
    role: main
    seeds: [0, 1]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 2}
    arms:
      a: {method: crbg, set: {scale: 0.3, density: 0.5}}
      b: {method: edge_popup, set: {scale: 0.2, density: 0.5}}
      c: {method: dense, set: {init: kaiming_normal}}
      d: {method: edge_popup, set: {scale: 0.2, density: 0.4}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return configs.read(["config.yaml"])


@pytest.fixture
def place(config, digits):
    return Workspace(config.results, loaded={"digits": digits}, selected=None)


def test_runs_are_measured_and_compared(config, place):
    cells = config.experiment("one").cells
    for c in cells:
        execute(c.spec, c.seed, place)
    rows = robustness(config, cells, place)
    found = {(arm, seed, measure, other): value for _, arm, _, _, seed, measure, other, value in rows}
    for c in cells:
        kinds = {other for arm, seed, m, other in found if (arm, seed, m) == (c.arm, c.seed, "accuracy")}
        assert kinds == {"clean", *CORRUPTIONS}
        assert found[c.arm, c.seed, "accuracy", "clean"] == pytest.approx(evaluate(c.spec, c.seed, place).value())
        assert 0 <= found[c.arm, c.seed, "calibration_error", "fitted"] <= 100
    a, b = (c for c in cells if c.seed == 0 and c.arm in "ab")
    masks = [Ticket.load(run_folder(config, c.spec, 0) / "ticket.safetensors").mask for c in (a, b)]
    assert found["a", 0, "jaccard", "b"] == jaccard(*masks)
    pairs = {(arm, other) for arm, _, measure, other in found if measure == "jaccard"}
    assert pairs == {("a", "b")}, "only masks of equal densities in the same draw are compared"
    x = place.data("digits").test
    votes = [rebuild(run_folder(config, a.spec, s)).eval()(x.inputs(slice(None))).argmax(1) for s in (0, 1)]
    assert found["a", 0, "agreement", "1"] == pytest.approx(100 * float((votes[0] == votes[1]).double().mean()))


def test_a_run_without_its_network_is_named(config, place):
    with pytest.raises(CrbgError, match=r"a crbg-lenet-16.* seed 0: its network is not in results.*`crbg run one"):
        robustness(config, config.experiment("one").cells, place)


def test_only_selected_runs_read_the_test_set(config, place, tmp_path):
    place.selected = tmp_path / "selected.yaml"
    with pytest.raises(CrbgError, match="only specs listed there may be evaluated"):
        robustness(config, config.experiment("one").cells, place)


def test_the_file_is_recorded_next_to_the_runs(config):
    assert not record_robustness(config)
    robustness_file(config).parent.mkdir()
    robustness_file(config).write_text(text([("one", "a", 0.5, "0f", 0, "accuracy", "clean", 97.123456)]))
    (config.results / "recorded").mkdir()
    assert record_robustness(config)
    lines = robustness_file(config, recorded=True).read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"revision {revision()}" in lines[0]
    assert lines[1:] == [",".join(COLUMNS), "one,a,0.5,0f,0,accuracy,clean,97.1235"]


def test_images_are_corrupted_once_for_all_runs(config, place, monkeypatch):
    cells, seen = [c for c in config.experiment("one").cells if c.arm == "a"], []
    for c in cells:
        execute(c.spec, c.seed, place)
    monkeypatch.setattr(measured, "corrupted", lambda part, name: seen.append(name) or corrupted(part, name))
    robustness(config, cells, place)
    assert sorted(seen) == sorted(CORRUPTIONS)


def test_the_command_measures_the_configured_runs(config, place, monkeypatch, crbg):
    cells = [c for c in config.experiment("one").cells if c.arm == "a"]
    for c in cells:
        execute(c.spec, c.seed, place)
    monkeypatch.setattr("crbg.runs.queue.bench", lambda config: place)
    code, out, _ = crbg("robustness")
    assert code == 0
    assert out.endswith("\nresults/robustness.csv: 17 values of 2 runs\n")
