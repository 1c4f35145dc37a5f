import contextlib
import functools
import os
import re
import subprocess
import sys
from random import Random

import pytest
import yaml
from paths import ROOT

from crbg import methods
from crbg.errors import CrbgError
from crbg.experiments import config, config_files, config_models, record_store
from crbg.experiments.config import read
from crbg.experiments.spec import spec_from

QUICKSTART = "config/overlays/quickstart.yaml"
BASE = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}


@pytest.fixture(autouse=True)
def first_versions(monkeypatch):
    # A digest includes the method's VERSION. It is fixed here, so that pinned digests test only the canonical form.
    for name in methods.names():
        monkeypatch.setattr(methods.get(name), "VERSION", 1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    # `paper/selected.yaml` is read from the working directory, so tests must not run in the project's folder.
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
        (
            {"threads": "two", "results": 5, "reuse": 1},
            [
                "threads = 'two' must be a whole number",
                "results = 5 must be text",
                "unknown reuse 1: choose from: never, recorded",
            ],
        ),
        ({"reuse": "always"}, ["unknown reuse 'always': choose from: never, recorded"]),
        ({"experiments": {}}, ["there are no experiments"]),
        ({"experiments": [1]}, ["experiments = [1] must be a mapping"]),
        ({"experiments": {"e": 3}}, ["experiments.e must be a mapping"]),
        ({"experiments": one(sedes=[1])}, ["experiments.e: unknown key 'sedes': did you mean 'seeds'?"]),
        (
            {"experiments": one(gpu=True, cells_per_job="x")},
            ["gpu = True must be a whole number", "cells_per_job = 'x' must be a whole number"],
        ),
        ({"experiments": one(role="mian")}, ["unknown role 'mian': did you mean 'main'?"]),
        ({"experiments": one(seeds=[])}, ["seeds must be a list of whole numbers >= 0, not []"]),
        ({"experiments": one(seeds=[0, -1])}, ["not [0, -1]"]),
        ({"experiments": one(seeds=[True])}, ["not [True]"]),
        ({"experiments": one(arms={})}, ["experiments.e has no arms"]),
        ({"experiments": one(arms={"a": None})}, ["experiments.e.arms.a must be a mapping"]),
        ({"experiments": one(arms={"a": {"set": {"density": 0.5}}})}, ["experiments.e.arms.a.method is missing"]),
        (
            {"experiments": one(arms={"a": {"method": "crbg", "gird": {}}})},
            ["experiments.e.arms.a: unknown key 'gird'", "'grid'"],
        ),
        (
            {"experiments": one(arms={"a": {"method": "crbg", "grid": {"density": []}}})},
            ["arms.a.grid.density must be a list of at least"],
        ),
        (
            {"experiments": one(arms={"a": {"method": "crbg", "grid": {"density": 0.5}}})},
            ["arms.a.grid.density", "not 0.5"],
        ),
        (
            {"experiments": one(arms={"a": {"method": "crbg", "set": {"options.nois": 1.0}}})},
            ["e.arms.a: crbg has no option 'nois'"],
        ),
        (
            {"experiments": one(arms={"a": {"method": "crbg", "grid": {"scale": [1, 1.0]}}})},
            ["arms.a: two points of the grid define"],
        ),
        (
            {"experiments": one(arms={"a": {"method": "crbg", "grid": [3]}})},
            ["arms.a.grid must be a mapping of lists", "3 is not a mapping"],
        ),
        ({"experiments": one(view="dost")}, ["experiments.e: unknown view 'dost': did you mean 'dots'?"]),
        (
            {"experiments": one(x="options.nois")},
            ["experiments.e.x: no arm has a field 'options.nois': did you mean 'options.noise'?"],
        ),
        ({"experiments": one(tuned_by="f")}, ["experiments.e.tuned_by"]),
        ({"experiments": one(tuned_by=["e", "f"])}, ["experiments.e.tuned_by: unknown experiment 'f': choose from: e"]),
        ({"experiments": one(gpu=1, nodes=2)}, ["experiments.e: runs on several nodes need `gpu: 2` or more"]),
        ({"experiments": one(nodes=0, gpu=-1)}, ["e: nodes = 0 must be at least 1", "e: gpu = -1 must be at least 0"]),
        ({"override": {"epochz": 1}}, ["override: unknown key 'epochz': did you mean 'epochs'?"]),
        ({"scale": {"epochs": 1}}, ["the key 'scale' is now 'override'; rename it"]),
    ],
)
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


# --- settings chosen by the selection rule ---


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
    # If the folder has no such file, the same configuration plans untuned runs.
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
    assert len(done) == len(set(done)) == 12  # both arms contain the runs with density 0.2
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
    config = read(["config.yaml", QUICKSTART])
    real = read(["config.yaml"])
    assert config.demonstration
    assert not real.demonstration
    other = {"quick_graph", "quick_series", "quick_text", "quick_waves"}
    assert set(config.experiments) - set(real.experiments) == {"deep", "winning", *other}, "what is only shown"
    assert set(real.experiments) < set(config.experiments)
    for name, e in config.experiments.items():
        (data,) = {c.spec.data for c in e.cells}
        images = data == "digits"
        assert images or (
            data.startswith("toy_") and name.startswith(("quick_", "cora_", "italy_", "sunspots_", "shakespeare_"))
        )
        assert len({c.seed for c in e.cells}) <= 2
        assert len(e.jobs()) <= 2
        if name in ("deep", "winning", *other):
            continue
        assert {c.arm for c in e.cells} == {c.arm for c in real.experiment(name).cells}
        without_search = {c.arm for c in real.experiment(name).cells if c.spec.epochs == 0}
        assert {c.arm for c in e.cells if c.spec.epochs == 0} == without_search
    assert any(c.spec.epochs == 0 for e in config.experiments.values() for c in e.cells)
    assert not {config.results, config.paper} & {real.results, real.paper}


def test_every_label_names_an_arm_or_a_penalty(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read(["config.yaml"])
    shown = (config, read(["config.yaml", QUICKSTART]))  # the quickstart has additional experiments and fewer points
    cells = [c for one in shown for e in one.experiments.values() for c in e.cells]
    named = {c.arm for c in cells} | {c.spec.options["penalty"] for c in cells if "penalty" in c.spec.options}
    assert set(config.labels) <= named


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


# --- several files ---


def put(here, **files):
    for name, body in files.items():
        path = here / f"{name}.yaml"
        path.write_text(body if isinstance(body, str) else yaml.safe_dump(body, sort_keys=False))


def test_included_files_lie_under_the_file_that_includes_them(here):
    (here / "more").mkdir()
    put(here, config={"include": ["more/a.yaml", "more/b.yaml"], "threads": 3, "experiments": one(seeds=[5])})
    (here / "more/a.yaml").write_text(
        yaml.safe_dump({"threads": 1, "gpu_share": 4, "experiments": {"f": experiment()}})
    )
    (here / "more/b.yaml").write_text("include: c.yaml\ngpu_share: 5\n")
    (here / "more/c.yaml").write_text("gpu_share: 6\nsave_every: 7\n")
    config = read(["config.yaml"])
    assert (config.threads, config.gpu_share, config.save_every) == (3, 5, 7)
    assert set(config.experiments) == {"e", "f"}
    assert {c.seed for c in config.experiment("e").cells} == {5}


def test_a_mistake_in_an_included_file_names_that_file(here):
    put(here, config={"include": "part.yaml", "experiments": one()}, part={"experiments": {"f": experiment(sedes=[1])}})
    assert (
        message()
        == "part.yaml: experiments.f: unknown key 'sedes': did you mean 'seeds'? choose from: "
        + ", ".join(sorted(config_models.Experiment.model_fields))
    )
    put(here, part={"experiments": {"f": experiment(arms={"a": {"method": "crbg", "set": {"options.noise": -1}}})}})
    assert message().startswith("part.yaml: experiments.f.arms.a: crbg.noise = -1.0 must be at least 0")


def test_files_that_include_nothing_or_themselves_are_refused(here):
    put(here, config={"include": ["prat.yaml"]}, part={})
    assert message().startswith("config.yaml: include: there is no file 'prat.yaml': did you mean 'part.yaml'?")
    put(here, config={"include": "part.yaml"}, part={"include": "config.yaml"})
    assert "includes itself" in message()


def test_bodies_extend_bases_and_an_overlay_adds_fields(here):
    bases = {
        "small": BASE,
        "long": {"extends": "small", "epochs": 9, "options.lr": 0.5},
        "quiet": {"options.noise": 0.0, "batch": 32},
    }
    arms = {
        "a": {"method": "crbg", "set": "quiet"},
        "b": {"method": "crbg", "set": {"extends": ["quiet"], "batch": 16, "options.lr": 0.25}},
    }
    put(here, config={"bases": bases, "experiments": one(base="long", arms=arms, seeds=[0])})
    a, b = (c.spec for c in read(["config.yaml"]).experiment("e").cells)
    assert (a.data, a.epochs, a.batch, a.resolved().lr, a.resolved().noise) == ("digits", 9, 32, 0.5, 0.0)
    assert (b.epochs, b.batch, b.resolved().lr, b.resolved().noise) == (9, 16, 0.25, 0.0)
    put(here, over={"experiments": {"e": {"base": {"epochs": 3}, "arms": {"a": {"set": {"batch": 8}}}}}})
    a, b = (c.spec for c in read(["config.yaml", "over.yaml"]).experiment("e").cells)
    assert (a.epochs, a.batch, a.resolved().noise, b.epochs, b.batch) == (3, 8, 0.0, 3, 16)


@pytest.mark.parametrize(
    ("bases", "words"),
    [
        ({"samll": BASE}, "experiments.e.base: unknown base 'small': did you mean 'samll'?"),
        ({"small": {"extends": "big"}, "big": {"extends": "small"}}, "extends itself: small -> big -> small"),
        ({"small": {"extends": 3}}, "bases.small: extends must name a base"),
        ({"small": {"epocs": 1}}, "bases.small: unknown key 'epocs': did you mean 'epochs'?"),
    ],
)
def test_wrong_bases_are_named(here, bases, words):
    put(here, config={"bases": bases, "experiments": one(base="small")})
    assert words in message()


def test_defaults_reach_the_experiments_that_a_file_introduces(here):
    put(
        here,
        config={"defaults": {"seeds": [7], "role": "main"}, "experiments": {"e": experiment(seeds=None, role=None)}},
        over={"defaults": {"seeds": [8]}, "experiments": {"e": {"cells_per_job": 1}, "f": experiment(seeds=None)}},
    )
    config = read(["config.yaml", "over.yaml"])
    assert {c.seed for c in config.experiment("e").cells} == {7}
    assert {c.seed for c in config.experiment("f").cells} == {8}
    assert (config.experiment("e").role, config.experiment("f").role) == ("main", "tune")


def test_experiments_come_in_the_order_that_is_given(here):
    three = {"e": experiment(), "f": experiment(), "g": experiment()}
    put(here, config={"order": ["g", "e"], "experiments": three})
    assert list(read(["config.yaml"]).experiments) == ["g", "e", "f"]
    put(here, config={"order": ["h"], "experiments": three})
    assert "order: unknown experiment 'h'" in message()


def test_labels_of_the_configuration_name_arms_in_figures(here):
    arms = {"a": {"method": "random", "label": "mine"}, "b": {"method": "dense"}, "c": {"method": "probe"}}
    put(here, config={"labels": {"a": "ours", "b": "theirs"}, "experiments": one(arms=arms)})
    config = read(["config.yaml"])
    assert [config.experiment("e").label(n) for n in "abc"] == ["mine", "theirs", "c"]
    assert config.labels == {"a": "ours", "b": "theirs"}


# --- keys, names and values ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("threads: 1\nthreads: 2\n", "config.yaml, line 2: the key 'threads' is given twice, first in line 1"),
        ("experiments: {e: {}, e: {}}\n", "config.yaml, line 1: the key 'e' is given twice, first in line 1"),
        ("experiments: {no: {}}\n", "experiments: the key False is not text (YAML reads yes, no, on and off"),
        ("experiments:\n  e:\n    arms: {1: {}}\n", "experiments.e.arms: the key 1 is not text; put it in quotes"),
    ],
)
def test_keys_are_text_and_unique(here, text, words):
    put(here, config=text)
    assert words in message()


def test_a_merged_mapping_may_replace_what_it_merges(here):
    put(
        here,
        config="bases: {a: &a {epochs: 1, batch: 8}, b: {<<: *a, epochs: 2}}\n"
        + yaml.safe_dump({"experiments": one()}),
    )
    assert read(["config.yaml"])


@pytest.mark.parametrize("name", ["a b", "a/b", ".a", "a.b", "a-b", "", "ä"])
def test_names_that_no_file_or_wildcard_can_hold_are_refused(here, name):
    put(here, config={"experiments": {name: experiment()}})
    assert f"the name {name!r} of an experiment" in message()
    put(here, config={"experiments": one(targets=[name])})
    assert f"the name {name!r} of a target" in message()


@pytest.mark.parametrize(("name", "fine"), [("0.5*a+b", True), ("a b", False), ("a/b", False), (".a", False)])
def test_names_of_arms(here, name, fine):
    put(here, config={"experiments": one(arms={name: {"method": "random"}})})
    if fine:
        assert read(["config.yaml"])
    else:
        assert f"the name {name!r} of an arm" in message()


def test_a_target_does_not_take_the_name_of_a_rule(here):
    put(here, config={"experiments": {"Lenet_2": experiment(targets=["All_2"])}})
    assert read(["config.yaml"])
    put(here, config={"experiments": one(targets=["paper"])})
    assert "the target 'paper' has the name of a rule" in message()
    text = "\n".join(p.read_text() for p in (ROOT / "workflow").rglob("*.smk"))
    assert set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", text, re.MULTILINE)) == config_files.RULES


def test_paths_expand_home_and_variables(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SITE", "far away")
    path = write(results="$SITE/results", paper="~/paper", data_dir="${SITE}", experiments=one())
    config = read([path])
    assert (str(config.results), str(config.paper), config.data_dir) == (
        "far away/results",
        "/home/me/paper",
        "far away",
    )
    assert "results = '$NOWHERE/x': the environment variable in this path is not set" in message(
        path, settings=["results=$NOWHERE/x"]
    )
    assert "nor contain { } < >" in message(path, settings=["paper=a{b}"])


def test_every_scalar_of_the_top_level_is_a_setting(write):
    scalars = {
        k
        for k, f in config_models.Settings.model_fields.items()
        if not re.search(r"dict|list|Experiment", str(f.annotation))
    }
    assert set(config_files.SCALARS) == scalars
    config = read([write(experiments=one())], ["results=2024", "gpu_share=3", "data_dir=x y", "seeds_at_most=1"])
    assert (str(config.results), config.gpu_share, config.data_dir) == ("2024", 3, "x y")
    assert {c.seed for c in config.experiment("e").cells} == {0}
    assert "gpu_share = 0 must be at least 1" in message("config.yaml", settings=["gpu_share=0"])
    assert "unknown device 'gpu'; choose auto, cpu, cuda or cuda:N" in message("config.yaml", settings=["device=gpu"])


@pytest.mark.parametrize("groups", [{0.5: [1.5]}, {0: [0.5]}, {0.5: ["x"]}])
def test_densities_of_groups_lie_above_0_and_up_to_1(here, groups):
    put(here, config={"experiments": one(groups=groups)})
    assert "experiments.e.groups must map a tuned density in (0, 1]" in message()


def test_tuned_densities_are_their_own_groups_by_default(here):
    arms = {"a": {"method": "crbg", "grid": {"density": [0.5, 0.1], "options.lr": [0.1, 0.2]}}}
    put(here, config={"experiments": one(role="tune", arms=arms)})
    assert read(["config.yaml"]).experiment("e").groups == {0.5: (0.5,), 0.1: (0.1,)}
    put(here, config={"experiments": one(role="ablation", arms=arms)})
    assert read(["config.yaml"]).experiment("e").groups == {}


def test_the_old_place_of_an_overlay_names_the_new_one(here):
    (here / "config/overlays").mkdir(parents=True)
    (here / "config/overlays/quickstart.yaml").write_text("")
    assert message("config/quickstart.yaml").endswith("it is now config/overlays/quickstart.yaml")


def places(value, loc=()):
    """Yield the path of every node in nested mappings and lists."""
    yield loc
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*loc, key))


@pytest.mark.long
def test_whatever_stands_in_the_files_there_is_one_clear_error(here):
    arms = {"a": {"method": "crbg", "set": "q", "grid": {"density": [0.5], "options.lr": [0.1]}, "seeds": [1]}}
    e = experiment(base="small", arms=arms, targets=["t"], groups={0.5: [0.5]}, tuned_by="e")
    whole = {"include": "part.yaml", "order": ["e"], "bases": {"small": BASE, "q": {"options.noise": 0.1}}}
    whole |= {"defaults": {"seeds": [0]}, "labels": {"a": "A"}, "threads": 1, "override": {}, "experiments": {"e": e}}
    put(here, part={}, config=whole)
    assert read(["config.yaml"])
    junk = [None, 3, -1, "", "x", [], {}, [1], {"x": 1}, True, 1.5, float("nan"), {"a": [None]}, [[]], "small", {1: 2}]
    random, refused = Random(0), 0
    for _ in range(120):
        body = yaml.safe_load(yaml.safe_dump(whole, sort_keys=False))
        *path, last = random.choice([loc for loc in places(body) if loc])
        holder = functools.reduce(lambda held, key: held[key], path, body)
        holder[last] = random.choice(junk)
        put(here, config=body)
        with contextlib.suppress(CrbgError):
            read(["config.yaml"])
            continue
        refused += 1
    assert refused > 80


def test_a_stand_in_replaces_its_data_set_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {"model": "lenet-8", "method": "random", "density": 0.5, "batch": 32}
    made = {name: {"base": base | {"data": name}, "arms": {"a": {}}} for name in ("sunspots", "mnist")}
    demo = {"override": {"data": "digits"}, "stand_ins": {"sunspots": "toy_series"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"experiments": made} | demo))
    found = {name: e.cells[0].spec.data for name, e in read(["config.yaml"]).experiments.items()}
    assert found == {"sunspots": "toy_series", "mnist": "digits"}


@pytest.mark.parametrize(
    ("top", "message"),
    [
        (
            {"stand_ins": {"sunspots": "toy_series"}},
            "stand_ins replaces data sets in a demonstration only; add `override`",
        ),
        (
            {"override": {"epochs": 1}, "stand_ins": {"sunspot": "toy_series"}},
            "unknown data set 'sunspot': did you mean",
        ),
    ],
)
def test_stand_ins_are_checked(top, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {"data": "digits", "model": "lenet-8", "method": "random", "density": 0.5, "batch": 32}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"experiments": {"e": {"base": base, "arms": {"a": {}}}}} | top)
    )
    with pytest.raises(CrbgError, match=message):
        read(["config.yaml"])
