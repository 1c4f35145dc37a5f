"""`crbg plan` lists missing runs and their estimated hours for each experiment, arm and device."""

import pytest

from crbg.experiments import cells, estimates, plan
from crbg.experiments import config as configs

CONFIG = """
device: {device}
experiments:
  first:
    targets: [section]
    role: main
    seeds: [0, 1]
    gpu: 1
    base: {{data: digits, model: lenet-16, batch: 64, epochs: 1}}
    arms: {{a: {{method: crbg, set: {{density: 0.5}}}}, b: {{method: edge_popup, set: {{density: 0.5}}}}}}
  second:
    seeds: [0]
    base: {{data: digits, model: lenet-16, batch: 64, epochs: 1}}
    arms: {{same: {{method: crbg, set: {{density: 0.5}}}}}}
  third:
    targets: [section]
    seeds: [0]
    base: {{data: digits, model: lenet-16, batch: 64, epochs: 1}}
    arms: {{c: {{method: crbg, set: {{density: 0.2}}}}}}
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimates, "GPU_FLOPS", 1.0)  # slow enough that the estimates are visible in hours
    monkeypatch.setattr(estimates, "CPU_FLOPS", 0.5)

    def do(device="auto"):
        (tmp_path / "config.yaml").write_text(CONFIG.format(device=device))
        return configs.read(["config.yaml"])

    return do


def hours(config):
    """Return (CPU hours, GPU hours) for each experiment and for the total."""
    table = plan.table(config, cells.choose_cells(config))[0]
    return {row[0]: (float(row[4]), float(row[5])) for row in [*table.rows, table.total]}


def test_runs_are_planned_for_a_gpu_only_where_they_will_use_one(read):
    one = hours(read())["first"][1] / 4
    assert one > 0
    for device, first, third in (
        ("auto", (0, 4 * one), (2 * one, 0)),
        ("cpu", (8 * one, 0), (2 * one, 0)),
        ("cuda", (0, 4 * one), (0, one)),
        ("cuda:1", (0, 4 * one), (0, one)),
    ):
        found = hours(read(device))
        assert found["first"] == pytest.approx(first, abs=0.02), device
        assert found["third"] == pytest.approx(third, abs=0.02), device


def test_the_total_counts_a_shared_run_once(read):
    found = hours(read("cpu"))
    assert found["second"][0] == pytest.approx(found["third"][0])
    assert found["total"][0] == pytest.approx(found["first"][0] + found["third"][0], abs=0.02)


def test_the_summary_groups_experiments_by_their_first_target(read):
    config = read()
    table, text = plan.summary(config, cells.choose_cells(config))
    assert [row[:4] for row in table.rows] == [
        ("section", "first", "main", "4"), ("", "third", "ablation", "1"), ("none", "second", "ablation", "1")
    ]  # fmt: skip
    assert table.total[3] == "5"
    assert "`crbg plan NAME`" in text


def test_one_experiment_is_shown_by_arm_and_a_target_by_experiment(read):
    config = read()
    assert [row[0] for row in plan.table(config, cells.choose_cells(config, "first"))[0].rows] == ["a", "b"]
    assert [row[0] for row in plan.table(config, cells.choose_cells(config, "section"))[0].rows] == ["first", "third"]


def test_slices_say_on_what_they_run(read):
    for device, on in (("auto", ["GPU", "GPU", "CPU"]), ("cpu", ["CPU"] * 3)):
        config = read(device)
        table, text = plan.schedule(config, cells.choose_cells(config), 60.0, " --set x=y")
        assert [row[3] for row in table.rows] == on
        assert "crbg run --set x=y --deadline-minutes 60" in text
