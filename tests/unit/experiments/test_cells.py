"""The cells (runs of a spec with a seed) that a command selects; tests/integration/test_cli.py tests the errors."""

import pytest

from crbg.errors import CrbgError
from crbg.experiments import cells
from crbg.experiments import config as configs
from crbg.experiments.experiment import distinct


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("""
experiments:
  one:
    targets: [section, two]
    seeds: [0, 1]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1}
    arms:
      a: {method: crbg, grid: {density: [0.5, 0.1], scale: [0.2, 0.3], options.lr: [0.01, 0.02]}}
      b: {method: edge_popup, set: {density: 0.5}}
  two:
    seeds: [0, 5]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1}
    arms:
      same: {method: edge_popup, set: {density: 0.5}}
      conv: {method: dense, set: {model: conv2, data: cifar10}, grid: {model_args.width: [1.0, 2.0]}}
""")
    return configs.read(["config.yaml"])


def test_a_name_is_an_experiment_before_it_is_a_target(config):
    assert [e.name for e in cells.choose_experiments(config, "two")] == ["two"]
    assert [e.name for e in cells.choose_experiments(config, "section")] == ["one"]
    assert [e.name for e in cells.choose_experiments(config, None)] == ["one", "two"]
    with pytest.raises(CrbgError, match="no experiment 'chaptr'"):
        cells.choose_experiments(config, "chaptr")


def test_conditions_narrow_the_choice_and_seeds_replace_the_configured_ones(config):
    chosen = cells.choose_cells(config, "one", ["arm=a", "density=.1", "options.lr=1e-2"])
    assert [(c.spec.density, c.spec.scale, c.seed) for c in chosen] == [
        (0.1, 0.2, 0), (0.1, 0.2, 1), (0.1, 0.3, 0), (0.1, 0.3, 1)
    ]  # fmt: skip
    assert [c.seed for c in cells.choose_cells(config, "one", ["arm=b"], [7, 8])] == [7, 8]
    digest = chosen[0].spec.digest()
    assert {c.spec.digest() for c in cells.choose_cells(config, where=[f"digest={digest}"])} == {digest}
    with pytest.raises(CrbgError, match="--seeds -1"):
        cells.choose_cells(config, seeds=[-1])


def test_seeds_by_hand_keep_a_shared_run_in_every_experiment(config):
    chosen = cells.choose_cells(config, seeds=[7, 8])
    assert len({c.key for c in chosen}) == 2 * 11  # eight points of arm a, the shared run, two convolutional networks
    shared = [(c.experiment, c.arm, c.seed) for c in chosen if c.spec.method == "edge_popup"]
    assert shared == [("one", "b", 7), ("one", "b", 8), ("two", "same", 7), ("two", "same", 8)]


def test_conditions_on_options_and_model_arguments_skip_the_runs_that_lack_them(config):
    assert {c.arm for c in cells.choose_cells(config, where=["options.noise=0.5"])} == {"a"}
    wide = cells.choose_cells(config, where=["model_args.width=2.0"])
    assert [(c.arm, c.seed) for c in wide] == [("conv", 0), ("conv", 5)]
    for key, hint in (
        ("options.nois", "did you mean 'options.noise'"),
        ("model_args.withd", "did you mean 'model_args.width'"),
        ("slug", "choose from: arm, batch"),
        ("seed", "use `--seeds`"),
        ("_resolved", "choose from: arm, batch"),
        ("_digest", "did you mean 'digest'"),
    ):
        with pytest.raises(CrbgError, match=f"--where {key}: .*{hint}"):
            cells.choose_cells(config, where=[f"{key}=1"])


def test_a_job_is_exactly_its_cells(config):
    job = config.experiment("one").jobs()[1]
    assert cells.choose_cells(config, job=job.name, where=["arm=b"]) == list(job.cells)


def test_a_shared_run_counts_once_under_its_first_experiment(config):
    every = cells.choose_cells(config)
    once = distinct(every)
    assert len(every) - len(once) == 1
    assert [c.experiment for c in once.values() if c.spec.method == "edge_popup"] == ["one", "one", "two"]


def test_settings_are_those_that_differ_within_the_arm(config):
    every = cells.choose_cells(config)
    said = cells.settings(config, every)
    a = [said[c.key] for c in every if c.arm == "a" and c.spec.density == 0.5 and c.seed == 0]
    assert a == [f"scale={s} options.lr={lr}" for s in (0.2, 0.3) for lr in (0.01, 0.02)]
    assert {said[c.key] for c in every if c.arm == "b"} == {""}
    assert {said[c.key] for c in every if c.arm == "conv"} == {"model_args.width=1.0", "model_args.width=2.0"}
    for c in every:  # the printed settings can be used as an argument
        if said[c.key] and c.seed == 0:
            density = [f"density={c.spec.density}"] if c.spec.density else []
            where = [f"arm={c.arm}", *density, *said[c.key].split()]
            assert {o.spec.digest() for o in cells.choose_cells(config, c.experiment, where)} == {c.spec.digest()}
