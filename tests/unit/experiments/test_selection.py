from pathlib import Path

import pytest
import yaml
from records import made_up_evaluation, made_up_record

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import record_store, selection
from crbg.experiments.spec import Spec
from crbg.storage.atomic import read_json, write_json

GRID = {"density": [0.5, 0.1], "scale": [0.3, 0.6], "options.lr": [0.01, 0.02]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a tuning experiment with four settings for each of two densities, and a main experiment that uses it."""
    monkeypatch.chdir(tmp_path)
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}
    arm = {"method": "crbg", "set": {"options.noise": 0.25}}
    spare = {"method": "edge_popup", "grid": {"density": [0.5, 0.1]}}
    write_config(
        {
            "tuning": {
                "role": "tune", "seeds": [0, 1], "groups": {0.5: [0.5, 0.2], 0.1: [0.1]}, "base": base,
                "arms": {"ours": arm | {"grid": GRID}, "spare": spare},
            },
            "curve": {
                "role": "main", "seeds": [5, 6], "tuned_by": "tuning", "base": base | {"epochs": 3},
                "arms": {
                    "ours": arm | {"grid": {"density": [0.5, 0.2, 0.1]}},
                    "random": {"method": "random", "set": {"epochs": 0}},
                },
            },
        }
    )  # fmt: skip
    for cell in read().experiment("tuning").cells:
        put(cell, 50.0)


def write_config(experiments, **top):
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": experiments} | top, sort_keys=False))


def read():
    return configs.read(["config.yaml"])


def put(cell, accuracy, missed=False, status="ok"):
    where = record_store.run_folder(read(), cell.spec, cell.seed)
    # If the choice used another reading or the test split, the order of the settings would be reversed.
    readings = {
        "binary": {"accuracy": accuracy},
        "exact": {"accuracy": 100 - accuracy},
        "mean": {"accuracy": 100 - accuracy},
    }
    record = made_up_record(cell.spec, cell.seed, status=status)
    if status == "ok":
        record["validation"] = {"readings": readings, "density_missed": missed}
    write_json(where / "record.json", record)
    write_json(where / "provenance.json", {})
    write_json(
        where / "evaluation.json",
        made_up_evaluation(cell.spec, cell.seed, {"readings": {"binary": {"accuracy": 100 - accuracy}}}),
    )


def point(density, scale, lr, seed):
    return next(
        c
        for c in read().experiment("tuning").cells
        if (c.arm, c.spec.density, c.spec.scale, c.seed) == ("ours", density, scale, seed)
        and c.spec.resolved().lr == lr
    )


def chosen(density=0.5, arm="ours"):
    config = read()
    return next(c for c in selection.suggest(config, config.experiment("tuning"))[arm] if c["tuned_at"] == density)


def test_the_highest_mean_validation_accuracy_wins(project):
    # The best single run and the best mean belong to different settings.
    put(point(0.5, 0.6, 0.01, 0), 90.0)
    put(point(0.5, 0.6, 0.01, 1), 60.0)
    put(point(0.5, 0.3, 0.02, 0), 80.0)
    put(point(0.5, 0.3, 0.02, 1), 80.5)
    choice = chosen()
    assert choice["set"] == {"scale": 0.3, "options.lr": 0.02}
    assert choice["validation"] == 80.25
    assert choice["digest"] == point(0.5, 0.3, 0.02, 0).spec.digest()
    assert (choice["densities"], choice["trials"], choice["missed"]) == ([0.5, 0.2], 4, 0)
    assert chosen(0.1)["densities"] == [0.1]


def test_densities_are_chosen_apart(project):
    put(point(0.5, 0.6, 0.02, 0), 90.0)
    put(point(0.1, 0.3, 0.02, 0), 90.0)
    assert chosen(0.5)["set"] == {"scale": 0.6, "options.lr": 0.02}
    assert chosen(0.1)["set"] == {"scale": 0.3, "options.lr": 0.02}


def test_a_setting_that_missed_the_density_in_one_run_is_out(project):
    put(point(0.5, 0.6, 0.01, 0), 95.0)
    put(point(0.5, 0.6, 0.01, 1), 95.0, missed=True)
    put(point(0.5, 0.6, 0.02, 0), 96.0)
    put(point(0.5, 0.6, 0.02, 1), 0.0, status="collapse")
    put(point(0.5, 0.3, 0.02, 1), 51.0)
    choice = chosen()
    assert choice["set"] == {"scale": 0.3, "options.lr": 0.02}
    assert (choice["trials"], choice["missed"]) == (4, 2)


@pytest.mark.parametrize(("kept", "lr"), [(0.45, 0.02), (0.509, 0.02), (0.52, 0.01), (None, 0.01)])
def test_gates_on_units_are_compared_by_their_half_mask_if_it_is_sparse_enough(project, kept, lr):
    body = yaml.safe_load(Path("config.yaml").read_text())
    arm = {"method": "crbg", "set": {"options.granularity": "unit"}, "grid": {"options.lr": [0.01, 0.02]}}
    body["experiments"]["tuning"] |= {
        "base": body["experiments"]["tuning"]["base"] | {"density": 0.5},
        "groups": {0.5: [0.5]},
    }
    body["experiments"]["tuning"]["arms"] = {"ours": arm}
    write_config(body["experiments"])
    for cell in read().experiment("tuning").cells:
        best = cell.spec.resolved().lr == 0.02
        put(cell, 40.0 if best else 50.0, missed=best)
        path = record_store.run_folder(read(), cell.spec, cell.seed) / "record.json"
        record = read_json(path)
        record["validation"]["readings"]["half"] = {"accuracy": 90.0 if best else 50.0}
        epochs = [{"density": 0.9}, {"density": kept}] if kept else []
        write_json(path, record | {"anatomy": {"epochs": epochs}})
    found = chosen()
    assert found["set"] == {"options.lr": lr}
    assert found["missed"] == (lr == 0.01)


def test_ties_go_to_the_first_of_the_grid(project):
    assert chosen()["set"] == {"scale": 0.3, "options.lr": 0.01}
    put(point(0.5, 0.6, 0.02, 0), 70.0)
    put(point(0.5, 0.6, 0.01, 1), 70.0)
    assert chosen()["set"] == {"scale": 0.6, "options.lr": 0.01}


def test_nothing_is_chosen_where_nothing_landed(project):
    for cell in read().experiment("tuning").cells:
        if cell.arm == "ours" and cell.spec.density == 0.1:
            put(cell, 90.0, missed=True)
    with pytest.raises(CrbgError, match=r"tuning: no setting of ours reached the density 0\.1"):
        chosen()
    body = yaml.safe_load(Path("config.yaml").read_text())
    write_config(body["experiments"], override={"flip": False})
    assert read().demonstration
    assert chosen(0.1)["missed"] == 4  # a demonstration may choose a run that missed its target density


def test_a_missing_run_stops_the_choice(project):
    cell = point(0.1, 0.6, 0.01, 1)
    (record_store.run_folder(read(), cell.spec, 1) / "record.json").unlink()
    with pytest.raises(CrbgError, match=rf"tuning: {cell.spec.slug()} seed 1 is not done; `crbg run tuning` runs it"):
        chosen()


def test_varying_lists_only_what_differs():
    base = {"density": 0.5, "batch": 64}
    settings = [(scale, lr) for scale in (0.3, 1.0) for lr in (0.1, 0.2)]
    trials = [
        Spec("digits", "lenet-16", "crbg", scale=s, options={"lr": lr, "noise": 0.25}, **base) for s, lr in settings
    ]
    assert selection.varying(trials[1], trials) == {"scale": 0.3, "options.lr": 0.2}
    assert selection.varying(trials[0], trials[:2]) == {"options.lr": 0.1}
    assert selection.varying(trials[0], trials[:1]) == {}
    # A trial that leaves an option at its default counts as different from trials that set it to another value.
    default = Spec("digits", "lenet-16", "crbg", **base)
    assert selection.varying(default, [default, trials[2]])["options.noise"] == 0.5


def test_the_choice_reaches_the_main_experiment_and_opens_its_test_set(project):
    put(point(0.5, 0.6, 0.02, 0), 90.0)
    put(point(0.1, 0.3, 0.02, 0), 90.0)
    before = {c.spec.digest() for c in read().experiment("curve").cells}
    text, notes = selection.write(read(), Path("paper/selected.yaml"))
    assert not notes
    assert "curve ours at 0.5: scale=0.6, options.lr=0.02 (70.0 %, 4 trials, 0 missed the density)" in text

    curve = read().experiment("curve")
    settings = {c.spec.density: (c.spec.scale, c.spec.resolved().lr) for c in curve.cells if c.arm == "ours"}
    assert settings == {0.5: (0.6, 0.02), 0.2: (0.6, 0.02), 0.1: (0.3, 0.02)}
    assert {c.spec.resolved().noise for c in curve.cells if c.arm == "ours"} == {0.25}
    assert {c.spec.epochs for c in curve.cells if c.arm == "ours"} == {3}

    written = yaml.safe_load(Path("paper/selected.yaml").read_text())
    assert set(written) == {"curve", "evaluate"}
    assert set(written["curve"]) == {"ours"}  # `spare` is not an arm of the main experiment
    listed = written["evaluate"]
    assert listed == {"curve": {c.spec.digest(): c.spec.slug() for c in curve.cells}}
    assert not before >= set(listed["curve"])
    assert [c.spec.epochs for c in read().experiment("tuning").cells][:2] == [2, 2]


def test_choosing_again_writes_the_same_bytes(project):
    put(point(0.5, 0.6, 0.02, 0), 90.0)
    path = Path("paper/selected.yaml")
    selection.write(read(), path)
    first = path.read_bytes()
    selection.write(read(), path)
    assert path.read_bytes() == first
    assert first.startswith(b"# Written by `crbg select`")


def test_an_arm_may_be_tuned_in_a_group_of_its_own(project):
    body = yaml.safe_load(Path("config.yaml").read_text())["experiments"]
    body["tuning"]["groups"] = {0.5: [0.5, 0.2], 0.1: [0.1], 0.2: [0.2]}
    body["tuning"]["arms"]["ours"]["grid"] = [GRID, {"density": [0.2], "scale": [0.3, 0.6]}]
    write_config(body)
    for cell in read().experiment("tuning").cells:
        put(cell, 50.0 + 10 * (cell.spec.scale == 0.6) * (cell.spec.density == 0.2))
    config = read()
    choices = selection.suggest(config, config.experiment("tuning"))
    assert [c["tuned_at"] for c in choices["spare"]] == [0.5, 0.1]  # `spare` has no trials at 0.2
    Path("paper").mkdir()
    selection.write(config, Path("paper/selected.yaml"))
    at = {c.spec.density: c.spec for c in read().experiment("curve").cells if c.arm == "ours"}
    assert at[0.2].scale == 0.6  # a later group takes precedence
    assert at[0.5].scale == 0.3
    body["tuning"]["groups"][0.4] = [0.4]
    write_config(body)
    with pytest.raises(CrbgError, match=r"tuning\.groups names density 0\.4, at which no arm is tuned"):
        selection.suggest(read(), read().experiment("tuning"))


def test_trials_of_different_lengths_do_not_compete(project):
    made = yaml.safe_load(Path("config.yaml").read_text())["experiments"]
    made["tuning"]["arms"]["ours"]["grid"] = [GRID, {"density": [0.5], "epochs": [4], "scale": [0.3]}]
    write_config(made)
    for cell in read().experiment("tuning").cells:
        put(cell, 50.0)
    with pytest.raises(CrbgError, match=r"trials of ours at density 0\.5 have different epochs"):
        chosen()


def test_what_all_trials_of_a_density_share_is_chosen_too(project):
    made = yaml.safe_load(Path("config.yaml").read_text())["experiments"]
    grids = [
        {"density": [0.5], "scale": [0.3], "options.lr": [0.01, 0.02]},
        {"density": [0.1], "scale": [0.6], "options.lr": [0.02]},
    ]
    made["tuning"]["arms"]["ours"]["grid"] = grids
    write_config(made)
    for cell in read().experiment("tuning").cells:
        put(cell, 50.0)
    assert chosen(0.5)["set"] == {"scale": 0.3, "options.lr": 0.01}
    assert chosen(0.1)["set"] == {"scale": 0.6, "options.lr": 0.02}


def test_partial_selection_leaves_out_arms_whose_trials_have_not_all_run(project):
    cell = point(0.1, 0.6, 0.01, 1)
    (record_store.run_folder(read(), cell.spec, 1) / "record.json").unlink()
    tuning = read().experiment("tuning")
    every = {c.arm for c in tuning.cells}
    assert selection.unfinished(read(), tuning) == ["ours"]
    assert set(selection.suggest(read(), tuning, skip=["ours"])) == every - {"ours"}
    selection.write(read(), read().paper / "selected.yaml", partial=True)
    written = yaml.safe_load((read().paper / "selected.yaml").read_text())
    for name, arms in written["evaluate"].items():
        listed = {c.arm for c in read().experiment(name).cells if c.spec.digest() in arms}
        assert "ours" not in listed, "what is not chosen yet may not see the test set"


def test_an_arm_with_missing_trials_keeps_its_settings_and_says_so(project):
    path = Path("paper/selected.yaml")
    put(point(0.5, 0.6, 0.02, 0), 90.0)
    selection.write(read(), path)
    before = path.read_bytes()
    put(point(0.5, 0.3, 0.01, 0), 95.0)  # a choice from all trials would now be another one
    cell = point(0.1, 0.6, 0.01, 1)
    (record_store.run_folder(read(), cell.spec, 1) / "record.json").unlink()
    _, notes = selection.write(read(), path)
    assert path.read_bytes() == before
    assert notes == ["Some trials are missing, so these experiments or arms keep the settings that they have: curve."]
    path.unlink()
    with pytest.raises(CrbgError, match="no arm has all its trials; `crbg run NAME` runs tuning"):
        selection.write(read(), path)


def test_choices_in_another_folder_open_the_specs_that_they_change(project):
    put(point(0.5, 0.6, 0.02, 0), 90.0)
    config = configs.read(["config.yaml"], ["paper=first"])
    selection.write(config, Path("first/selected.yaml"))
    listed = yaml.safe_load(Path("first/selected.yaml").read_text())["evaluate"]["curve"]
    assert set(listed) == {
        c.spec.digest() for c in configs.read(["config.yaml"], ["paper=first"]).experiment("curve").cells
    }
    assert not Path("paper/selected.yaml").exists()


def test_own_data_are_found_under_the_data_root_that_was_set(project, monkeypatch):
    monkeypatch.delenv("CRBG_DATA", raising=False)
    index = {"shape": [1, 8, 8], "classes": 10, "train": 100, "validation": 10, "test": 10, "mean": [0.5], "std": [0.2]}
    write_json(Path("sets/mine/index.json"), index | {"digest": "d"})
    body = yaml.safe_load(Path("config.yaml").read_text())["experiments"]
    body["curve"]["base"]["data"] = "mine"
    write_config(body)
    config = configs.read(["config.yaml"], ["data_dir=sets"])
    selection.write(config, config.paper / "selected.yaml")
    listed = yaml.safe_load((config.paper / "selected.yaml").read_text())["evaluate"]["curve"]
    assert all("lenet-16-mine-" in slug for slug in listed.values())


def test_the_unfinished_arms_of_a_shared_tuning_are_found_once(project, monkeypatch):
    body = yaml.safe_load(Path("config.yaml").read_text())["experiments"]
    write_config(body | {"again": body["curve"]})  # a second experiment with the same tuning
    config, seen = read(), []
    real = record_store.find
    monkeypatch.setattr(record_store, "find", lambda *args: seen.append(args) or real(*args))
    selection.unfinished(config, config.experiment("tuning"))
    trials, seen[:] = len(seen), []
    selection.write(config, Path("paper/selected.yaml"))
    assert len(seen) == 3 * trials  # once to find the unfinished arms, and once for the choice of each experiment
