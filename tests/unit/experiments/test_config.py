import os
import subprocess
import sys

import pytest
import yaml
from paths import ROOT

from crbg import methods
from crbg.errors import CrbgError
from crbg.experiments import config, record_store
from crbg.experiments.config import read
from crbg.experiments.spec import spec_from

BASE = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}


@pytest.fixture(autouse=True)
def first_versions(monkeypatch):
    # Digests hash the method's version; pinned ones say something about the canonical form only while it is held.
    for name in methods.names():
        monkeypatch.setattr(methods.get(name), "VERSION", 1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    # `paper/selected.yaml` is looked up from the working directory, so no test here may see the project's.
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(here):
    def write(name="config.yaml", **body):
        (here / name).write_text(yaml.safe_dump(body, sort_keys=False))
        return name

    return write


def experiment(**changes):
    body = {
        "role": "tune",
        "seeds": [0, 1],
        "base": dict(BASE),
        "arms": {"a": {"method": "crbg", "grid": {"density": [0.5, 0.2]}}},
    }
    return {k: v for k, v in (body | changes).items() if v is not None}


def one(**changes):
    return {"e": experiment(**changes)}


def message(*paths, settings=()):
    with pytest.raises(CrbgError) as caught:
        read(paths or ["config.yaml"], settings)
    return str(caught.value)


# --- configuration files ---


def test_grids_expand_and_dotted_names_reach_the_options(write):
    arms = {
        "a": {
            "method": "crbg",
            "set": {"options.noise": 0.25},
            "grid": {"density": [0.5, 0.2, 0.1], "options.lr": [0.01, 0.02], "scale": [1]},
        },
        "b": {"method": "random", "set": {"density": 0.5, "epochs": 0}},
    }
    e = read([write(experiments=one(arms=arms, seeds=[3, 4]))]).experiment("e")
    assert len(e.cells) == 2 * (3 * 2 * 1 + 1)
    assert {(c.spec.density, c.spec.resolved().lr) for c in e.cells if c.arm == "a"} == {
        (d, lr) for d in (0.5, 0.2, 0.1) for lr in (0.01, 0.02)
    }
    assert {c.spec.resolved().noise for c in e.cells if c.arm == "a"} == {0.25}
    assert {c.seed for c in e.cells} == {3, 4}
    assert all((c.spec.data, c.spec.batch) == ("digits", 64) for c in e.cells)


def test_a_list_of_grids_is_their_union(write):
    grids = [{"density": [0.5, 0.2]}, {"density": [0.1], "options.lr": [0.01, 0.02]}]
    e = read([write(experiments=one(arms={"a": {"method": "crbg", "grid": grids}}, seeds=[0]))]).experiment("e")
    assert [(c.spec.density, c.spec.resolved().lr) for c in e.cells] == [
        (0.5, 0.03),
        (0.2, 0.03),
        (0.1, 0.01),
        (0.1, 0.02),
    ]


def test_an_arm_may_change_one_option_and_keep_the_others_of_the_base(write):
    base = BASE | {"method": "crbg", "options": {"noise": 0.25, "lr": 0.5}, "model_args": {"activation": "relu"}}
    arms = {"a": {}, "b": {"set": {"options.lr": 0.01, "model_args.activation": "prelu"}}}
    cells = read([write(experiments=one(base=base, arms=arms, seeds=[0]))]).experiment("e").cells
    assert [(c.spec.method, c.spec.resolved().noise, c.spec.resolved().lr) for c in cells] == [
        ("crbg", 0.25, 0.5),
        ("crbg", 0.25, 0.01),
    ]
    assert [c.spec.model_args["activation"] for c in cells] == ["relu", "prelu"]


def test_later_files_lie_over_earlier_ones(write):
    first = write("first.yaml", results="one", threads=1, experiments=one())
    second = write("second.yaml", results="two", experiments={"e": {"seeds": [7], "base": {"epochs": 3}}})
    config = read([first, second])
    assert (str(config.results), config.threads) == ("two", 1)
    assert {(c.seed, c.spec.epochs, c.spec.batch) for c in config.experiment("e").cells} == {(7, 3, 64)}
    assert str(read([second, first]).results) == "one"


def test_settings_lie_over_the_files(write):
    path = write(threads=1, experiments=one())
    config = read([path], ["results=elsewhere", "threads=3", "reuse=never"])
    assert (str(config.results), config.threads, config.reuse) == ("elsewhere", 3, "never")
    assert "--set thread=2: did you mean 'threads'?" in message(path, settings=["thread=2"])
    assert "--set experiments=x" in message(path, settings=["experiments=x"])
    assert "threads = True must be a whole number" in message(path, settings=["threads=true"])


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ({"resluts": "x"}, ["unknown key 'resluts': did you mean 'results'?"]),
        ({"threads": True}, ["threads = True must be a whole number"]),
        ({"threads": "two", "results": 5, "reuse": 1}, ["threads = 'two' must be a whole number", "results = 5 must be text", "unknown reuse 1: choose from: never, recorded"]),
        ({"reuse": "always"}, ["unknown reuse 'always': choose from: never, recorded"]),
        ({"experiments": {}}, ["there are no experiments"]),
        ({"experiments": [1]}, ["experiments = [1] must be a mapping"]),
        ({"experiments": {"e": 3}}, ["experiments.e must be a mapping"]),
        ({"experiments": one(sedes=[1])}, ["experiments.e: unknown key 'sedes': did you mean 'seeds'?"]),
        ({"experiments": one(gpu=True, cells_per_job="x")}, ["gpu = True must be a whole number", "cells_per_job = 'x' must be a whole number"]),
        ({"experiments": one(role="mian")}, ["unknown role 'mian': did you mean 'main'?"]),
        ({"experiments": one(seeds=[])}, ["seeds must be a list of whole numbers >= 0, not []"]),
        ({"experiments": one(seeds=[0, -1])}, ["not [0, -1]"]),
        ({"experiments": one(seeds=[True])}, ["not [True]"]),
        ({"experiments": one(arms={})}, ["experiments.e has no arms"]),
        ({"experiments": one(arms={"a": None})}, ["experiments.e.arms.a must be a mapping"]),
        ({"experiments": one(arms={"a": {"set": {"density": 0.5}}})}, ["experiments.e.arms.a.method is missing"]),
        ({"experiments": one(arms={"a": {"method": "crbg", "gird": {}}})}, ["experiments.e.arms.a: unknown key 'gird'", "'grid'"]),
        ({"experiments": one(arms={"a": {"method": "crbg", "grid": {"density": []}}})}, ["arms.a.grid.density must be a list of at least"]),
        ({"experiments": one(arms={"a": {"method": "crbg", "grid": {"density": 0.5}}})}, ["arms.a.grid.density", "not 0.5"]),
        ({"experiments": one(arms={"a": {"method": "crbg", "set": {"options.nois": 1.0}}})}, ["e.arms.a: crbg has no option 'nois'"]),
        ({"experiments": one(arms={"a": {"method": "crbg", "grid": {"scale": [1, 1.0]}}})}, ["arms.a: two points of the grid are"]),
        ({"experiments": one(arms={"a": {"method": "crbg", "grid": [3]}})}, ["arms.a.grid must be a mapping of lists", "not 3"]),
        ({"experiments": one(view="dost")}, ["experiments.e: unknown view 'dost': did you mean 'dots'?"]),
        ({"experiments": one(x="options.nois")}, ["experiments.e.x: no arm has 'options.nois': did you mean 'options.noise'?"]),
        ({"experiments": one(tuned_by="f")}, ["experiments.e.tuned_by"]),
        ({"experiments": one(tuned_by=["e", "f"])}, ["experiments.e.tuned_by: unknown experiment 'f': choose from: e"]),
        ({"experiments": one(gpu=1, nodes=2)}, ["experiments.e: several nodes need at least `gpu: 2` on each"]),
        ({"experiments": one(nodes=0, gpu=-1)}, ["e: nodes = 0 must be at least 1", "e: gpu = -1 must be at least 0"]),
        ({"override": {"epochz": 1}}, ["override: unknown key 'epochz': did you mean 'epochs'?"]),
        ({"scale": {"epochs": 1}}, ["the key 'scale' is now 'override'; rename it"]),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration_are_named(write, top, words):
    text = message(write(**({"experiments": one()} | top)))
    for word in words:
        assert word in text
    assert text.startswith("config.yaml: ")


def test_mistakes_of_several_experiments_are_in_one_error(write):
    wrong_arms = {"a": {"method": "crbgg"}, "b": {"method": "dense", "set": {"optons": {}}}, "c": {"method": "random"}}
    text = message(write(experiments={"e": experiment(arms=wrong_arms), "f": experiment(role="x", seeds=[])}))
    for part in (
        "experiments.e.arms.a: unknown method 'crbgg'",
        "experiments.e.arms.b.set: unknown key 'optons'",
        "experiments.f: unknown role 'x'",
        "f.seeds",
    ):
        assert part in text
    assert text.count("\n") == 3
    assert "arms.c" not in text


def test_files_that_are_no_configuration_are_named(here):
    assert message("absent.yaml") == "cannot read the configuration absent.yaml: No such file or directory"
    (here / "list.yaml").write_text("- a\n- b\n")
    assert message("list.yaml") == "list.yaml must be a mapping of keys, not list"
    (here / "bad.yaml").write_text("a: [1\nb: 2\n")
    assert message("bad.yaml").startswith("bad.yaml is not valid YAML: ")
    (here / "latin.yaml").write_bytes(b"about: \xe4\n")
    assert message("latin.yaml").startswith("latin.yaml is not valid YAML: ")
    (here / "empty.yaml").write_text("")
    assert "there are no experiments" in message("empty.yaml")


def test_targets_group_the_experiments(write):
    many = {"e": experiment(targets=["x"]), "f": experiment(targets=["x", "y"]), "g": experiment()}
    targets = read([write(experiments=many)]).targets()
    assert {t: [e.name for e in es] for t, es in targets.items()} == {
        "all": ["e", "f", "g"],
        "x": ["e", "f"],
        "y": ["f"],
    }
    with pytest.raises(CrbgError, match="no experiment 'h' in config\\.yaml"):
        read(["config.yaml"]).experiment("h")


# --- settings that the selection rule chose ---


def test_chosen_settings_reach_their_own_densities_alone(write, here):
    chosen = {
        "e": {
            "a": [{"densities": [0.2], "set": {"options.lr": 0.5, "scale": 0.3}}],
            "other": [{"densities": [0.5], "set": {}}],
        }
    }
    (here / "notes").mkdir()
    (here / "notes/selected.yaml").write_text(yaml.safe_dump(chosen))
    arms = {k: {"method": "crbg", "set": {"options.noise": 0.25}, "grid": {"density": [0.5, 0.2]}} for k in "ab"}
    path = write(paper="notes", experiments=one(arms=arms) | {"f": experiment()})
    config = read([path])
    seen = {
        (e, c.arm, c.spec.density): (c.spec.resolved().lr, c.spec.scale)
        for e in "ef"
        for c in config.experiment(e).cells
    }
    assert {k for k, v in seen.items() if v == (0.5, 0.3)} == {("e", "a", 0.2)}
    assert {c.spec.resolved().noise for c in config.experiment("e").cells} == {0.25}
    # Without the file of that folder the same configuration plans the untuned runs.
    assert {c.spec.scale for c in read([path], ["paper=empty"]).experiment("e").cells} == {1.0}


def test_a_demonstration_takes_the_committed_choice(write, here):
    (here / "paper").mkdir()
    (here / "paper/selected.yaml").write_text(
        yaml.safe_dump({"e": {"a": [{"densities": [0.5, 0.2], "set": {"scale": 0.3}}]}})
    )
    config = read([write(paper="demo", override={"epochs": 1}, experiments=one())])
    assert {c.spec.scale for c in config.experiment("e").cells} == {0.3}


def test_a_choice_that_is_no_mapping_is_refused(write, here):
    (here / "paper").mkdir()
    (here / "paper/selected.yaml").write_text("- 1\n")
    assert "selected.yaml must be a mapping" in message(write(experiments=one()))


# --- jobs ---


def many_cells(write, **top):
    arms = {
        "a": {"method": "crbg", "grid": {"density": [0.5, 0.2, 0.1]}},
        "b": {"method": "crbg", "grid": {"density": [0.2, 0.05]}},
    }
    return read([write(**({"experiments": one(arms=arms, seeds=[0, 1, 2], cells_per_job=5)} | top))])


def test_jobs_hold_every_run_once(write):
    e = many_cells(write).experiment("e")
    jobs = e.jobs()
    done = [c.key for j in jobs for c in j.cells]
    assert len(e.cells) == 15
    assert len(done) == len(set(done)) == 12  # both arms have density 0.2
    assert set(done) == {c.key for c in e.cells}
    assert [len(j.cells) for j in jobs] == [5, 5, 2]
    assert len({j.name for j in jobs}) == 3


def test_names_of_jobs_are_pinned_and_do_not_depend_on_what_is_done(write):
    config = many_cells(write)
    names = [j.name for j in config.experiment("e").jobs()]
    assert names[:2] == ["e-000-033bdb94", "e-001-74da5068"]
    cell = config.experiment("e").cells[0]
    where = record_store.run_folder(config, cell.spec, cell.seed)
    where.mkdir(parents=True)
    (where / "record.json").write_text('{"status": "ok"}')
    (where / "provenance.json").write_text("{}")
    assert [j.name for j in many_cells(write).experiment("e").jobs()] == names


def test_a_demonstration_limits_seeds_points_and_jobs(write):
    top = {"seeds_at_most": 2, "points_at_most": 1, "jobs_at_most": 2, "override": {"epochs": 5}}
    arms = {"a": {"method": "crbg", "grid": {"density": [0.5, 0.2], "options.lr": [0.1, 0.2, 0.3]}}}
    config = read([write(experiments=one(arms=arms, seeds=[4, 5, 6], cells_per_job=1), **top)])
    e = config.experiment("e")
    assert config.demonstration
    assert {(c.spec.density, c.seed) for c in e.cells} == {(d, s) for d in (0.5, 0.2) for s in (4, 5)}
    assert len(e.cells) == 4
    assert {c.spec.epochs for c in e.cells} == {5}
    assert len(e.jobs()) == 2


def test_points_kept_are_spread_over_the_grid(write):
    arms = {"a": {"method": "crbg", "grid": {"options.lr": [0.1, 0.2, 0.3, 0.4]}}}
    e = read([write(experiments=one(arms=arms, seeds=[0]), points_at_most=2, override={"epochs": 1})]).experiment("e")
    assert [c.spec.resolved().lr for c in e.cells] == [0.1, 0.3]


def test_seeds_by_hand_replace_the_configured_ones(write):
    cells = many_cells(write).experiment("e").cells
    by_hand = config.with_seed(cells, [8, 9])
    assert {c.key for c in by_hand} == {(c.spec.digest(), s) for c in cells for s in (8, 9)}
    assert len(by_hand) == 8


# --- the project's own configuration ---


def test_a_float_may_be_written_without_a_point():
    common = {"data": "digits", "model": "lenet-16", "method": "dense"}
    text = spec_from(common | {"scale": "1e-1", "options": {"lr": "1e-2"}})
    number = spec_from(common | {"scale": 0.1, "options": {"lr": 0.01}})
    assert (text.digest(), text.scale, text.resolved().lr) == (number.digest(), 0.1, 0.01)
    for bad in ("nan", "fast", "1e999"):
        with pytest.raises(CrbgError, match="scale"):
            spec_from(common | {"scale": bad})


def test_the_quickstart_is_a_demonstration_on_digits(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read(["config.yaml", "config/overlays/quickstart.yaml"])
    real = read(["config.yaml"])
    assert config.demonstration
    assert not real.demonstration
    assert set(config.experiments) - set(real.experiments) == {"deep", "winning"}, "what is only shown"
    assert set(real.experiments) < set(config.experiments)
    for name, e in config.experiments.items():
        assert {c.spec.data for c in e.cells} == {"digits"}
        assert len({c.seed for c in e.cells}) <= 2
        assert len(e.jobs()) <= 2
        if name in ("deep", "winning"):
            continue
        assert {c.arm for c in e.cells} == {c.arm for c in real.experiment(name).cells}
        without_search = {c.arm for c in real.experiment(name).cells if c.spec.epochs == 0}
        assert {c.arm for c in e.cells if c.spec.epochs == 0} == without_search
    assert any(c.spec.epochs == 0 for e in config.experiments.values() for c in e.cells)
    assert not {config.results, config.paper} & {real.results, real.paper}


def test_tuning_and_main_experiments_share_no_seed(monkeypatch):
    monkeypatch.chdir(ROOT)
    experiments = read(["config.yaml"]).experiments
    for e in experiments.values():
        for tuning in (experiments[name] for name in e.tuned_by):
            assert tuning.role == "tune"
            assert not {c.seed for c in e.cells} & {c.seed for c in tuning.cells}
            used = {d for densities in tuning.groups.values() for d in densities}
            tuned = {c.arm for c in tuning.cells}
            assert {c.spec.density for c in e.cells if c.arm in tuned} <= used


@pytest.mark.long
def test_planning_imports_no_torch():
    code = (
        "import crbg.cli, crbg.experiments.record_store, crbg.experiments.selection, crbg.report, sys; "
        "from crbg import methods; from crbg.experiments import config; "
        "config.read(['config.yaml']); [methods.get(n) for n in methods.names()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize("key", ["seeds_at_most", "points_at_most", "jobs_at_most", "threads"])
def test_limits_below_one_are_refused(key):
    with pytest.raises(CrbgError, match=f"{key} = 0 must be at least 1"):
        config.check({key: 0, "experiments": {}}, ("c.yaml",))


@pytest.mark.parametrize("body", [{"seeds": 3}, {"groups": {0.5: 0.5}}, {"groups": {"x": [0.5]}}, {"seeds": [1, 1]}])
def test_malformed_lists_of_an_experiment_are_named(body):
    arms = {"a": {"method": "random"}}
    raw = {"experiments": {"e": {"base": {"data": "digits", "model": "lenet-16"}, "arms": arms, **body}}}
    with pytest.raises(CrbgError, match=next(iter(body))):
        config.check(raw, ("c.yaml",))
