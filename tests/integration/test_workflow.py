import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from records import made_up_record

from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.storage import run_lines

pytestmark = pytest.mark.xdist_group("processes")

pytest.importorskip("snakemake")
PARTS = ("crbg", "config", "workflow", "profiles", "slurm", "paper", "config.yaml", "Snakefile", "environment.yml")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Return a copy of the project without results, so that runs on this machine do not affect the plans."""
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy_project(folder):
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)


def dry_run(clone, *words, options=("-n",), **site):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CRBG_", "SNAKEMAKE", "PYTHONPATH"))} | {
        "HOME": str(clone / "home")
    }
    env |= site
    command = [str(Path(sys.executable).parent / "snakemake"), *options, *words]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def planned(text):
    """Return the number of planned jobs for each rule, and of search jobs for each experiment."""
    table = re.search(r"Job stats:\n(.*?)\ntotal", text, re.DOTALL)
    assert table, text[-2000:]
    counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE)}
    return counts, Counter(re.findall(r"wildcards: job=(\w+)-\d{3}-[0-9a-f]{8}$", text, re.MULTILINE))


def record_everything(config):
    runs = {}
    for e in config.experiments.values():
        for c in e.cells:
            fake = {"record": made_up_record(c.spec, c.seed), "provenance": {}}
            runs.setdefault(record_store.recorded_file(config, c.spec), {})[c.key] = fake
    for path, those in runs.items():
        run_lines.put(path, those)


def test_a_fresh_clone_plans_every_search_of_a_target(clone):
    code, text = dry_run(clone, "--cores", "all", "lenet")
    assert code == 0, text
    counts, searches = planned(text)
    wanted = configs.read(["config.yaml"]).targets()["lenet"]
    assert searches == {e.name: len(e.jobs()) for e in wanted}
    mains = sum(e.role == "main" for e in wanted)
    once = dict.fromkeys(("data", "selection", "paper", "lenet"), 1)
    assert counts == {"search": searches.total(), "evaluate": mains, "chapter": mains} | once


def test_an_experiment_is_a_target_of_its_own(clone):
    code, text = dry_run(clone, "--cores", "all", "lenet_mu0")
    assert code == 0, text
    counts, searches = planned(text)
    assert searches == {"lenet_mu0": counts["search"]}
    assert counts["lenet_mu0"] == counts["paper"] == 1


def test_recorded_runs_spare_the_searches_but_not_on_the_cluster(clone):
    config = configs.read(["config.yaml"])
    record_everything(config)
    code, text = dry_run(clone, "--cores", "all", "all")
    assert code == 0, text
    counts, searches = planned(text)
    assert not searches
    assert not {"search", "data"} & set(counts)
    assert counts["paper"] == counts["all"] == 1

    # The main command of the README runs everything again.
    code, text = dry_run(clone, "--profile", "slurm", "all")
    assert code == 0, text
    counts, searches = planned(text)
    assert searches == {e.name: len(e.jobs()) for e in config.experiments.values()}
    assert counts["search"] + counts["search_gpu"] == searches.total()


def test_the_quickstart_plans_few_jobs(clone):
    code, text = dry_run(
        clone, "--cores", "all", "--configfile", "config.yaml", "config/overlays/quickstart.yaml", "--", "all"
    )
    assert code == 0, text
    counts, searches = planned(text)
    assert set(searches) == set(configs.read(["config.yaml", "config/overlays/quickstart.yaml"]).experiments)
    assert max(searches.values()) <= 2
    assert "results/quickstart/data/digits.json" in text
    assert "results/data" not in text
    assert counts["data"] == 5, "digits, and a generated graph, series, waves and text"


def test_a_rule_of_its_own_takes_the_jobs_of_an_architecture(clone):
    page = (ROOT / "docs/adding-an-architecture.md").read_text()
    rule = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ruleorder" in b)
    with Path("workflow/rules/runs.smk").open("a") as file:
        file.write("\n\n" + rule)
    Path("crbg/models/lenet5.py").write_text(
        next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "NAMES" in b)
    )
    Path("mine.yaml").write_text(
        re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1].replace("role:", "targets: [mine_too]\n    role:")
    )
    code, text = dry_run(clone, "--cores", "all", "--configfile", "config.yaml", "mine.yaml", "--", "mine_too")
    assert code == 0, text
    counts, searches = planned(text)
    assert set(searches) == {"mine"}
    assert counts["search_mine"] == searches.total()
    assert "search" not in counts
    assert text.count("mem_mb=32000") == text.count("constraint=highmem") == searches.total()


def test_configuration_files_are_laid_in_the_order_given(clone):
    for name, size in (("one.yaml", 5), ("two.yaml", 36)):
        Path(name).write_text(f"experiments: {{lenet_tune: {{cells_per_job: {size}}}}}\n")
    code, text = dry_run(clone, "--cores", "all", "--configfile", "one.yaml", "two.yaml", "--", "lenet")
    assert code == 0, text
    plain, first, both = (
        len(configs.read(["config.yaml", *files]).experiment("lenet_tune").jobs())
        for files in ([], ["one.yaml"], ["one.yaml", "two.yaml"])
    )
    assert len({plain, first, both}) == 3
    assert planned(text)[1]["lenet_tune"] == both


def test_an_unknown_key_stops_the_workflow_before_any_job(clone):
    Path("mistake.yaml").write_text("resluts: elsewhere\n")
    code, text = dry_run(clone, "--cores", "all", "--configfile", "mistake.yaml", "--", "all")
    assert code != 0
    assert "unknown key 'resluts': did you mean 'results'?" in text
    assert "Job stats" not in text
    assert "Traceback" not in text


def test_every_scalar_of_the_top_level_can_be_given_on_the_command_line(clone):
    values = {
        "about": "on purpose", "results": "some where/results", "paper": "some where/paper", "data_dir": "other data",
        "reuse": "never", "device": "cpu", "threads": 2, "gpu_share": 3, "save_every": 7, "seeds_at_most": 1,
        "points_at_most": 1, "jobs_at_most": 1,
    }  # fmt: skip
    assert set(values) == set(configs.SCALARS)
    words = [f"{k}={v}" for k, v in values.items()]
    code, text = dry_run(clone, "--cores", "all", "--printshellcmds", "lenet", "--config", *words)
    assert code == 0, text
    assert planned(text)[1]["lenet_tune"] == 1
    commands = [shlex.split(line) for line in re.findall(r"python -m crbg run .*", text)]
    assert commands
    for command in commands:
        assert command[command.index("--set") + 1 :][: len(words)] == words
        assert command[command.index("--out") + 1].startswith("some where/results/jobs/")
        assert command[command.index("--threads") + 1] == "2"


def test_an_unknown_key_on_the_command_line_is_named(clone):
    code, text = dry_run(clone, "--cores", "all", "lenet", "--config", "resluts=elsewhere")
    assert code != 0
    assert "--set resluts=elsewhere: did you mean 'results'?" in text
    assert "Traceback" not in text


def test_folders_may_have_spaces(tmp_path, monkeypatch):
    """Every rule works with spaces in the names of folders and files, and with capitals in names of experiments."""
    folder = tmp_path / "my project"
    folder.mkdir()
    copy_project(folder)
    monkeypatch.chdir(folder)
    arms = {"a": {"method": "random", "set": {"density": 0.5}}}
    body = {"role": "main", "targets": ["Small"], "arms": arms}
    base = {"data": "digits", "model": "lenet-16", "epochs": 0, "batch": 64}
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": {"Small_2": body | {"base": base}}}))
    Path("my overlay.yaml").write_text("results: my results\npaper: my results/paper\noverride: {limit: 640}\n")
    words = ("--configfile", "config.yaml", "my overlay.yaml", "--", "Small")
    code, text = dry_run(folder, "--cores", "1", *words, options=())
    assert code == 0, text
    for made in (
        "report-Small.html",
        "evaluated/Small_2.json",
        "data/digits.json",
        "paper/tables/Small_2.md",
        "selected-Small.yaml",
    ):
        assert Path("my results", made).exists(), text[-3000:]


def resources(text, rule):
    """Return the resources of each planned job of a rule."""
    blocks = re.findall(rf"^ *rule {rule}:\n((?: {{4,}}.*\n)+?) *Shell", text, re.MULTILINE)
    lines = [re.search(r"resources: (.*)", b)[1] for b in blocks]
    return [dict(pair.split("=", 1) for pair in line.split(", ") if "=" in pair) for line in lines]


def test_only_what_asks_for_a_gpu_goes_where_gpus_are(clone):
    Path("gpu.yaml").write_text("experiments: {lenet_goals: {gpu: 1}}\n")
    site = {
        "CRBG_SLURM_GPU_PARTITION": "fast",
        "CRBG_SLURM_PARTITION": "slow",
        "CRBG_SLURM_GPU_MODEL": "h200",
        "CRBG_SLURM_ACCOUNT": "us",
    }
    words = ("--profile", "slurm", "--configfile", "config.yaml", "gpu.yaml", "--", "lenet")
    code, text = dry_run(clone, *words, **site)
    assert code == 0, text
    config = configs.read(["config.yaml", "gpu.yaml"])
    for rule, count in (("search_gpu", len(config.experiment("lenet_goals").jobs())), ("evaluate_gpu", 1)):
        found = resources(text, rule)
        assert len(found) == count
        assert {(r["slurm_partition"], r["gpu"], r["gpu_model"], r["slurm_account"]) for r in found} == {
            ("fast", "1", "h200", "us")
        }
    found = resources(text, "search") + resources(text, "evaluate")
    assert {(r["slurm_partition"], r.get("gpu"), r.get("gpu_model")) for r in found} == {("slow", None, None)}
    # Without settings for the cluster, no partition, GPU model or account is requested.
    code, text = dry_run(clone, *words)
    assert code == 0, text
    assert not {"slurm_partition", "gpu_model", "slurm_account"} & {k for r in resources(text, "search_gpu") for k in r}
    assert {r["gpu"] for r in resources(text, "search_gpu")} == {"1"}


def test_a_run_on_several_gpus_or_nodes_is_started_by_torchrun(clone):
    Path("wide.yaml").write_text("experiments: {lenet_goals: {gpu: 4}, lenet_goals_refit: {gpu: 2, nodes: 3}}\n")
    site = {"CRBG_SLURM_GPU_PARTITION": "fast", "CRBG_SLURM_GPU_MODEL": "h200"}
    words = ("--profile", "slurm", "--configfile", "config.yaml", "wide.yaml", "--", "lenet")
    code, text = dry_run(clone, *words, **site)
    assert code == 0, text
    config = configs.read(["config.yaml", "wide.yaml"])
    wide, spread = resources(text, "search_wide"), resources(text, "search_nodes")
    assert (len(wide), len(spread)) == tuple(
        len(config.experiment(e).jobs()) for e in ("lenet_goals", "lenet_goals_refit")
    )
    keys = ("slurm_partition", "gpu", "gpu_model", "nodes", "cpus_per_task")
    assert {tuple(r[k] for k in keys) for r in wide} == {("fast", "4", "h200", "1", "4")}
    assert text.count(
        "python -m torch.distributed.run --standalone --nproc-per-node=4 -m crbg run lenet_goals "
    ) == len(wide)
    wanted = {("fast", "srun", "3", "2", "gpu:h200:2", None, None)}
    keys = ("slurm_partition", "mpi", "nodes", "tasks_per_node", "gres", "gpu", "gpu_model")
    assert {tuple(r.get(k) for k in keys) for r in spread} == wanted
    start = (
        "srun --nodes=3 --ntasks=3 --ntasks-per-node=1 --cpus-per-task=$((1 * 2)) "
        "python -m torch.distributed.run --nnodes=3 "
        "--nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=$(hostname):$((20000 + SLURM_JOB_ID % 20000)) "
        "--rdzv-id=$SLURM_JOB_ID -m crbg run lenet_goals_refit "
    )
    assert text.count(start) == len(spread)
    assert {r["gres"] for r in resources(dry_run(clone, *words)[1], "search_nodes")} == {"gpu:2"}


def test_what_is_asked_of_slurm_for_several_nodes():
    """The executor requests GPUs per node, the same number of tasks per node, and no options that contradict these."""
    from types import SimpleNamespace

    submit = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string")

    class Resources(dict):
        __getattr__ = dict.__getitem__

    asked = Resources(mpi="srun", nodes=3, tasks_per_node=2, gres="gpu:h200:2", mem_mb=8000, runtime=60)
    job = SimpleNamespace(resources=asked, threads=4)
    about = {"run_uuid": "u", "slurm_logfile": "l", "comment_str": "c", "account": "", "partition": "", "workdir": ""}
    call = submit.get_submit_command(job, about)
    assert {"--nodes=3", "--ntasks-per-node=2", "--cpus-per-task=4"} <= set(call.split())
    assert "--ntasks=" not in call
    assert "--ntasks-per-gpu" not in call


def test_long_jobs_are_cut_into_slices_of_the_longest_wall_time(clone):
    code, text = dry_run(clone, "--profile", "slurm", "lenet", CRBG_SLURM_MAX_MINUTES="4", CRBG_SLURM_RETRIES="9")
    assert code == 0, text
    found = resources(text, "search")
    assert {r["runtime"] for r in found} == {"4"}
    assert min(int(r["slices"]) for r in found) > 3
    assert {r["attempt"] for r in found} == {"1"}
    assert "${SLURM_JOB_ID:+--deadline-minutes 4 --attempt 1 --slices" in text


def test_five_thousand_runs_plan_in_seconds():
    """Planning is fast and needs little memory: no graph node per run, and no file read per pair of runs."""
    script = ROOT / "benchmarks/plan.py"
    done = subprocess.run([sys.executable, script, "--runs", "5000"], capture_output=True, text=True, check=True)
    runs, _, jobs, _, seconds, megabytes = (float(v) for v in done.stdout.splitlines()[-1].strip("| ").split("|"))
    assert (runs, jobs) == (5000, 250)
    assert seconds < 15
    assert megabytes < 500
