import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from records import made_up_record

from crbg import __version__, cli, methods, models
from crbg.data.datasets import DATA
from crbg.experiments import attempts, estimates, plan, record_store
from crbg.experiments import config as configs
from crbg.training.clock import Clock

COMMANDS = sorted(cli.build_parser()._subparsers._group_actions[0].choices)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a folder with an MNIST configuration, and an overlay that switches it to a few epochs on `digits`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRBG_DATA", raising=False)
    base = {"data": "mnist", "model": "lenet-32-16", "epochs": 40, "batch": 64}
    experiments = {
        "tuning": {
            "role": "tune", "seeds": [0], "groups": {0.5: [0.5, 0.2]}, "base": base,
            "arms": {"crbg": {"method": "crbg", "grid": {"density": [0.5], "options.lr": [0.05, 0.1]}}},
        },
        "curve": {
            "about": "a curve", "role": "main", "tuned_by": "tuning", "seeds": [10, 11], "cells_per_job": 3,
            "base": base,
            "arms": {
                "crbg": {"method": "crbg", "grid": {"density": [0.5, 0.2]}},
                "random": {"method": "random", "set": {"epochs": 0}, "grid": {"density": [0.5, 0.2]}},
            },
        },
    }  # fmt: skip
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": experiments}, sort_keys=False))
    digits = {n: {"base": {"data": "digits", "epochs": 2}} for n in experiments}
    Path("digits.yaml").write_text(yaml.safe_dump({"experiments": digits}))
    Path("paper").mkdir()
    Path("paper/claims.yaml").write_text("{claims: [], contrasts: []}")
    Path("paper/selected.yaml").write_text("{curve: {crbg: [{densities: [], set: {}}]}}")
    return tmp_path


SMALL = ("--config", "config.yaml", "digits.yaml")


@pytest.fixture
def crbg(crbg):
    return lambda *words, small=True: crbg(*words, *(SMALL if small else ()))


def refused(answer):
    code, out, err = answer
    assert code == 2
    assert out == ""
    assert err.startswith("crbg: ")
    assert "Traceback" not in err
    return err


def records():
    return sorted(Path("results/runs").rglob("record.json"))


def cells(experiment="curve"):
    return configs.read(["config.yaml", "digits.yaml"]).experiment(experiment).cells


def test_the_commands_are_those_of_the_manual():
    looks, does = (
        ["data", "list", "plan", "status"],
        ["evaluate", "export", "record", "report", "robustness", "run", "select", "verify"],
    )
    assert sorted(looks + does) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    example = text.split("example:\n")[1].split()
    assert example[:2] == ["crbg", command]
    assert cli.build_parser().parse_args(example[1:]).do


def test_a_wrong_command_is_an_argument_error(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["rnu"])
    assert done.value.code == 2
    assert "invalid choice: 'rnu'" in capsys.readouterr().err


def test_what_is_tuned_waits_for_its_choice(project, crbg):
    """If no settings were chosen, the arm would run with the defaults but be labelled as tuned."""
    Path("paper/selected.yaml").unlink()
    assert "no settings are chosen yet for curve.crbg: run the experiments" in refused(crbg("run", "curve"))
    assert crbg("run", "curve", "--where", "arm=random")[0] == 0


def test_list_names_one_kind_alone(project, crbg):
    everything = crbg("list")[1]
    parts = {kind: crbg("list", kind)[1] for kind in ("experiments", "methods", "models", "data")}
    assert all(part in everything for part in parts.values())
    assert "edge_popup " in parts["methods"]
    assert not {"tuning", "mnist"} & {line.split()[0] for line in parts["methods"].splitlines() if line.strip()}
    assert [line.split()[0] for line in parts["experiments"].splitlines()][:2] == ["tuning", "curve"]


def test_list_explains_the_options_of_a_method(project, crbg):
    out = crbg("list", "methods", "imp")[1]
    for said in (
        "lottery tickets (Frankle",
        "drop: Fraction of the remaining",
        "rewind: ",
        "\nDefaults: ",
        " drop=0.2",
    ):
        assert said in out
    assert "did you mean 'imp'" in refused(crbg("list", "methods", "impp"))
    assert "only methods have details" in refused(crbg("list", "data", "mnist"))


def test_list_names_everything_there_is_to_choose(project, crbg):
    code, out, _ = crbg("list")
    assert code == 0
    for name, kind, runs in (("tuning", "tune", 2), ("curve", "main", 8)):
        assert [name, kind, str(runs), "runs"] in [line.split()[:4] for line in out.splitlines()]
    for name in (*methods.names(), *DATA, "conv2", "vgg16", "lenet-300-100", "timm:resnet18"):
        assert re.search(rf"\n  (  )?{name} ", out)
    assert "weight_decay=0.0001" in out
    assert "1197 training, 300 validation, 300 test images" in out
    assert "\n      a curve\n" in out
    assert out.endswith("`crbg list methods`, `crbg list models`, `crbg list data` list one part.\n")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"crbg {__version__}\n"


def test_lists_fit_a_page_and_name_only_what_there_is(monkeypatch, crbg):
    monkeypatch.chdir(ROOT)
    out = crbg("list", small=False)[1]
    assert max(map(len, out.splitlines())) <= 100
    names = re.findall(r"^ +(\S+) +[\d.]+ . weights", out, re.MULTILINE)
    assert len(names) == len(estimates.SIZES)
    assert all(models.family(name) for name in names)


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.startswith(name))


def test_plan_tells_what_is_missing_before_and_after(project, crbg):
    code, out, _ = crbg("plan")
    assert code == 0
    head = ["target", "experiment", "role", "runs", "done", "missing", "CPU", "hours", "GPU", "hours", "disk", "MiB"]
    assert out.splitlines()[0].split() == head
    assert out.splitlines()[2].split()[:6] == ["none", "tuning", "tune", "2", "0", "2"]
    assert out.splitlines()[3].split()[:5] == ["curve", "main", "8", "0", "8"]
    assert row(out, "total")[1:4] == ["10", "0", "10"]
    assert "`crbg plan NAME` shows the arms" in out
    whole = crbg("plan", "curve")[1]
    real = crbg("plan", "curve", small=False)[1]
    assert float(row(real, "curve")[4]) > float(row(whole, "curve")[4]) > 0  # 40 epochs of MNIST take longer
    crbg("run", "curve", "--where", "arm=random")
    assert row(crbg("plan", "all")[1], "curve")[1:4] == ["8", "4", "4"]
    arms = crbg("plan", "curve")[1]
    assert row(arms, "random")[1:5] == ["4", "4", "0", "0.00"]
    assert row(arms, "crbg")[1:4] == ["4", "0", "4"]
    assert row(arms, "curve")[1:4] == ["8", "4", "4"]


def test_a_target_stands_for_its_experiments(project, crbg):
    body = yaml.safe_load(Path("config.yaml").read_text())
    # The name of an experiment takes precedence over a target of the same name.
    body["experiments"]["tuning"]["targets"] = ["part", "curve"]
    Path("config.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    assert "tuning" in crbg("plan", "part")[1]
    assert "curve" not in crbg("plan", "part")[1]
    assert "tuning" not in crbg("plan", "curve")[1]


def test_one_cell_runs_once(project, crbg):
    where = ("--where", "arm=crbg", "density=0.2", "--seeds", "10")
    code, out, err = crbg("run", "curve", *where, "--out", "manifest.json")
    assert (code, err) == (0, "")
    assert len(records()) == 1
    record = json.loads(records()[0].read_text())
    assert (record["spec"]["density"], record["seed"], record["spec"]["data"]) == (0.2, 10, "digits")
    accuracy = record["validation"]["readings"]["binary"]["accuracy"]
    missed = ", cut to this density because the search did not reach it" * record["validation"]["density_missed"]
    poor = ", no better than always predicting the most frequent class" * (accuracy <= record["validation"]["constant"])
    name = f"crbg {records()[0].parts[-3]} seed 10"
    line = f"{name}: validation {accuracy:.2f} % at density {record['density']:.4g}{missed}{poor}\n"
    assert out == line
    assert json.loads(Path("manifest.json").read_text()) == {"cells": [{"run": records()[0].parts[-3], "seed": 10}]}

    stamp = records()[0].stat().st_mtime_ns
    code, out, _ = crbg("run", "curve", *where)
    assert code == 0
    assert out.startswith(f"{line.rstrip()} ({records()[0].parent})\nall requested runs (1) are done or recorded")
    assert records()[0].stat().st_mtime_ns == stamp


def test_a_run_wants_a_name(project, crbg):
    code, _, err = crbg("run")
    assert code == 2
    assert "an experiment or a target" in err
    assert not records()


def test_lists_that_need_no_configuration_ask_for_none(tmp_path, monkeypatch, crbg):
    monkeypatch.chdir(tmp_path)
    assert "edge_popup" in crbg("list", "methods")[1]
    assert "timm:" in crbg("list", "models")[1]
    assert "mnist" in crbg("list", "data", small=False)[1]
    assert crbg("list", "experiments")[0] == 2
    assert "takes no name" in crbg("list", "models", "lenet")[2]


def test_choices_are_those_of_the_paper_folder_or_else_the_committed_ones(project):
    mine = Path("elsewhere/selected.yaml")
    assert configs.choices(mine.parent) == Path("paper/selected.yaml")
    mine.parent.mkdir()
    mine.write_text("{}")
    assert configs.choices(mine.parent) == mine


def test_where_filters_by_arm_field_and_option(project, crbg):
    assert row(crbg("plan", "--where", "arm=crbg")[1], "total")[1] == "6"
    assert row(crbg("plan", "--where", "arm=crbg", "density=0.5")[1], "total")[1] == "4"
    assert row(crbg("plan", "tuning", "--where", "options.lr=0.1")[1], "tuning")[1] == "1"
    assert row(crbg("plan", "curve", "--where", "density=.20", "epochs=2")[1], "curve")[1] == "2"
    assert row(crbg("plan", "curve", "--seeds", "1", "2", "3")[1], "curve")[1] == "12"


def test_where_with_a_wrong_name_or_value_names_the_choices(project, crbg):
    assert "no run matches; density is one of 0.2, 0.5" in refused(crbg("run", "curve", "--where", "density=0.3"))
    assert "density is one of" in refused(crbg("run", "curve", "--where", "density=half"))
    text = refused(crbg("plan", "curve", "--where", "arm=crbg", "lr=0.1"))
    assert "this is an option of the method; write options.lr" in text
    assert "arm is one of crbg, random" in refused(crbg("plan", "curve", "--where", "arm=crgb"))
    text = refused(crbg("status", "curve", "--where", "densty=0.5"))
    assert "--where densty: did you mean 'density'?" in text
    assert "write KEY=VALUE" in refused(crbg("run", "curve", "--where", "density"))
    assert records() == []


def test_unknown_experiments_and_jobs_name_the_nearest(project, crbg):
    text = refused(crbg("run", "curv"))
    assert "no experiment 'curv'" in text
    assert "overlay" not in text  # an overlay is given
    assert "an overlay needs `--config config.yaml OVERLAY.yaml`" in refused(crbg("run", "curv", small=False))
    job = configs.read(["config.yaml", "digits.yaml"]).experiment("curve").jobs()[1].name
    text = refused(crbg("run", "curve", "--job", job[:-1] + "x"))
    assert f"did you mean {job!r}?" in text
    assert "did the configuration change" in text


def test_a_job_runs_its_own_cells(project, crbg):
    job = configs.read(["config.yaml", "digits.yaml"]).experiment("curve").jobs()[2]
    assert crbg("run", "--job", job.name, "--out", "manifest.json")[0] == 0
    done = {(c["run"], c["seed"]) for c in json.loads(Path("manifest.json").read_text())["cells"]}
    assert done == {(c.spec.slug(), c.seed) for c in job.cells}
    assert {(p.parts[-3], int(p.parts[-2].removeprefix("seed"))) for p in records()} == done


def test_status_counts_and_says_how_to_run_what_is_missing(project, crbg):
    crbg("run", "curve", "--where", "arm=random", "density=0.5")
    one, other = (
        record_store.run_folder(configs.read(["config.yaml", "digits.yaml"]), c.spec, c.seed) for c in cells()[:2]
    )
    other.mkdir(parents=True)
    attempts.begin(other)
    code, out, _ = crbg("status", "curve")
    assert code == 0
    assert out.startswith("2 done, 0 collapsed, 0 running, 1 failed, 0 paused, 5 missing")
    commands = re.findall(r"  (crbg run curve .*)", out)
    done = sum(len(crbg(*c.split()[1:], small=False)[1].splitlines()) for c in commands)
    assert done == 6  # only the five missing runs and the failed one
    assert crbg("status", "curve")[1].startswith("8 done")
    record = made_up_record(cells()[0].spec, 10, status="collapse", reason="the loss is not finite")
    (one / "record.json").write_text(json.dumps(record))
    out = crbg("status", "curve")[1]
    assert out.startswith("7 done, 1 collapsed, 0 running, 0 failed, 0 paused, 0 missing")
    assert "the loss is not finite" in out


def suggested(text):
    return [shlex.split(line)[1:] for line in re.findall(r"^  (crbg run .*)", text, re.MULTILINE)]


def test_suggested_commands_repeat_the_selection(project, crbg):
    Path("my overlay.yaml").write_text("results: my results\n")
    files = ("--config", "config.yaml", "my overlay.yaml")
    where = ("--where", "arm=crbg", "density=0.5", "--seeds", "3", "4")
    job = configs.read(["config.yaml"]).experiment("curve").jobs()[0].name
    for chosen in (where, ("--job", job)):
        (command,) = suggested(crbg("plan", "curve", "--minutes", "5", *chosen, *files, small=False)[1])
        assert command == ["run", "curve", *chosen, *files, "--deadline-minutes", "5"]
    seeds = ("--seeds", *map(str, range(8)))
    status = crbg("status", "all", "--where", "epochs=40", *seeds, *files, small=False)[1]
    assert suggested(status) == [["run", e, "--where", "epochs=40", *seeds, *files] for e in ("tuning", "curve")]


# --- deadlines ---

ONE = ("run", "curve", "--where", "arm=crbg", "density=0.5", "--seeds", "10")


def test_a_run_that_is_out_of_time_goes_on_later(project, crbg, monkeypatch):
    assert crbg(*ONE, "--set", "results=whole")[0] == 0
    # The deadline has passed when the search starts, so the checkpoint is written before the first step.
    code, out, _ = crbg(*ONE, "--deadline-minutes", "0.1001", "--out", "manifest.json")
    assert (code, records()) == (75, [])
    assert "stopped after 0 of 36 steps; the same command continues" in out
    assert not Path("manifest.json").exists()
    # The second stop is after 23 steps, regardless of the machine's speed.
    monkeypatch.setattr("crbg.training.clock.Clock", lambda **words: Clock(**words | {"stop_after": 23}))
    code, out, _ = crbg(*ONE)
    assert code == 75
    assert "stopped after 23 of 36 steps" in out
    assert crbg("status", "curve", "--where", "arm=crbg", "density=0.5", "--seeds", "10")[1].startswith(
        "0 done, 0 collapsed, 0 running, 0 failed, 1 paused"
    )
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert crbg(*ONE, "--deadline-minutes", "60")[0] == 0
    assert records()[0].read_bytes() == next(Path("whole/runs").rglob("record.json")).read_bytes()


def test_a_deadline_between_two_runs_leaves_the_rest_for_later(project, crbg):
    words = (
        "run",
        "curve",
        "--where",
        "arm=random",
        "density=0.5",
        "--deadline-minutes",
        "0",
        "--out",
        "manifest.json",
    )
    assert crbg(*words)[0] == 75
    assert len(records()) == 1
    assert not Path("manifest.json").exists()
    assert crbg(*words)[0] == 0
    assert len(records()) == 2
    assert Path("manifest.json").exists()


# --- from tuning to the test set ---


def test_only_selected_specs_of_main_experiments_are_evaluated(project, crbg):
    where = ("--where", "arm=random", "density=0.5")
    crbg("run", "curve", *where)
    text = refused(crbg("evaluate", "curve", *where))
    assert "is not listed in paper/selected.yaml" in text
    assert "run `crbg select --config config.yaml digits.yaml`, which writes paper/selected.yaml" in text
    assert "only main experiments are evaluated" in refused(crbg("evaluate", "tuning"))
    assert not list(Path("results").rglob("evaluation.json"))

    listed = {c.spec.digest(): c.spec.slug() for c in cells() if c.arm == "random" and c.spec.density == 0.5}
    Path("paper/selected.yaml").write_text(yaml.safe_dump({"evaluate": {"tuning": listed}}))
    assert "is not listed" in refused(crbg("evaluate", "curve", *where))
    Path("paper/selected.yaml").write_text(yaml.safe_dump({"evaluate": {"curve": listed}}))
    code, out, _ = crbg("evaluate", "curve", *where, "--out", "manifest.json")
    assert code == 0
    written = sorted(Path("results").rglob("evaluation.json"))
    assert len(written) == 2
    exact = json.loads(written[0].read_text())["test"]["readings"]["binary"]["accuracy"]
    assert f"seed 10: test {exact:.2f} %" in out
    assert len(json.loads(Path("manifest.json").read_text())["cells"]) == 2
    assert "all requested runs (2) are evaluated" in crbg("evaluate", "curve", *where)[1]
    # The other density of this arm is not listed, so evaluating the whole arm is refused.
    assert "is not listed" in refused(crbg("evaluate", "curve", "--where", "arm=random"))


def test_select_needs_the_tuning_runs_and_then_opens_the_curve(project, crbg):
    kept = "Some trials are missing, so these experiments or arms keep the settings that they have: curve."
    assert kept in crbg("select")[1].splitlines()
    Path("paper/selected.yaml").unlink()
    assert "no settings can be chosen, because no arm has all its trials; `crbg run NAME` runs tuning" in refused(
        crbg("select")
    )
    # With so few epochs the runs miss their target density, and such runs cannot be chosen.
    crbg("run", "tuning")
    for path in records():
        record = json.loads(path.read_text())
        record["validation"]["density_missed"] = False
        path.write_text(json.dumps(record))
    code, out, _ = crbg("select")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "paper/selected.yaml: settings with the highest mean validation accuracy"
    # One setting is chosen from two trials; four specs may now be evaluated on the test set.
    assert lines[4].split() == ["curve", "1", "1", "2", "4"]
    assert crbg("select", "--verbose")[1].splitlines()[1].startswith("  curve crbg at 0.5: options.lr=")
    listed = yaml.safe_load(Path("paper/selected.yaml").read_text())["evaluate"]["curve"]
    assert set(listed) == {c.spec.digest() for c in cells()}


def test_record_and_report(project, crbg):
    crbg("run", "curve", "--where", "arm=random")
    code, out, _ = crbg("record", "curve")
    assert (code, out) == (0, "4 runs recorded under results/recorded\n")
    code, out, _ = crbg("report", "--brief")
    assert code == 0
    assert out.startswith("Runs: 4 of curve.\n")
    assert "paper/report.html" in out
    assert not Path("paper/report.html").exists()
    code, out, _ = crbg("report", "--page", "copy.html")
    assert code == 0
    assert Path("copy.html").read_bytes() == Path("paper/report.html").read_bytes()
    assert "curve: 4 runs are missing; `crbg run curve` runs them" in out


def test_data_says_what_a_set_holds(project, crbg):
    code, out, _ = crbg("data", "digits", "--out", "digits.json")
    assert code == 0
    assert out.startswith("digits: 1 x 28 x 28; 1197 training, 300 validation, 300 test images; SHA-256 ")
    assert json.loads(Path("digits.json").read_text())["images"] == {"train": 1197, "validation": 300, "test": 300}
    assert "did you mean 'digits'?" in refused(crbg("data", "digit"))


# --- mistakes ---


def test_a_bad_configuration_is_one_message(project, crbg):
    Path("config.yaml").write_text(Path("config.yaml").read_text().replace("density", "densty") + "reslts: x\n")
    text = refused(crbg("plan"))
    assert "reslts" in text
    assert text.count("crbg:") == 1
    assert "--set thread=2: did you mean 'threads'?" in refused(crbg("plan", "--set", "thread=2"))
    Path("config.yaml").unlink()
    assert refused(crbg("list")) == (
        "crbg: cannot read the configuration config.yaml: No such file or directory; "
        "run crbg in the root of a clone, or pass --config FILE\n"
    )


def test_results_that_cannot_be_written_are_one_message(project, crbg):
    Path("file").write_text("")
    message = refused(crbg(*ONE, "--set", "results=file/results"))
    assert "choose another folder (for runs: `--set results=...`)" in message


def test_a_gpu_that_is_not_there_is_one_message(project, crbg, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch finds no GPU; use --device cpu" in refused(crbg(*ONE, "--device", "cuda"))
    assert records() == []


def test_an_interruption_is_no_traceback(project, crbg, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "summary", interrupted)
    code, out, err = crbg("plan")
    assert (code, out) == (130, "")
    assert "the same command continues" in err


def test_the_module_is_the_command(project):
    command = [sys.executable, "-m", "crbg", "plan", "curv"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("crbg: no experiment 'curv' in config.yaml: did you mean 'curve'? choose from: curve")


BARE = """
import sys
for name in ("rich", "tabulate", "tqdm", "jinja2", "matplotlib", "snakemake"):
    sys.modules[name] = None
from crbg import cli
for line in ("run curve --where arm=random", "verify curve", "status", "plan", "list", "select --partial"):
    words = line.split()
    assert cli.main([*words, "--config", "config.yaml", "digits.yaml"]) == 0, words
"""


def test_commands_need_nothing_that_a_bare_gpu_machine_lacks(project):
    done = subprocess.run(
        [sys.executable, "-c", BARE], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4 PASS, 0 FAIL" in done.stdout
    assert "4 done" in done.stdout
