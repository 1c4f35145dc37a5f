"""Copies of the project that run on a real SLURM cluster, with helpers for the tests in this folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crbg.experiments import attempts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARTS = ("crbg", "config", "workflow", "profiles", "slurm", "paper", "Snakefile", "environment.yml")
BIN = Path(sys.executable).parent


def sh(*words, **kwargs):
    """Run a command and return the completed process; the exit status is 127 if the command is not installed."""
    words = [str(w) for w in words]
    if shutil.which(words[0]) is None:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: not installed")
    return subprocess.run(words, capture_output=True, text=True, check=False, **kwargs)


def is_up():
    """Return whether SLURM responds on this machine; False if it is not installed."""
    return sh("sinfo").returncode == 0


def clean(**more):
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("CRBG_", "SNAKEMAKE", "PYTHONPATH", "SLURM"))}
    return mine | {"PATH": f"{BIN}:{os.environ['PATH']}"} | more


class Clone:
    """A copy of the project with this folder's small configuration, in which nothing has been run yet."""

    def __init__(self, path, epochs=300):
        self.path = path
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, path / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, path / part)
        (path / "config.yaml").write_text(
            (HERE / "config.yaml").read_text().replace("epochs: 300", f"epochs: {epochs}")
        )
        self.dag, self.log = None, path / "dag.log"

    def start(self, *words, target=("all",), **env):
        """Start the command of the README, optionally with more arguments or another target, without waiting for it."""
        env = clean(HOME=str(self.path), CRBG_REVISION="test", **env)
        with self.log.open("a") as out:
            command = [BIN / "snakemake", "--profile", "slurm", *target, *words]
            self.dag = subprocess.Popen(
                command, cwd=self.path, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self

    def end(self, seconds=900):
        """Wait until Snakemake exits and return its exit status."""
        try:
            return self.dag.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the DAG did not end in {seconds} s:\n{self.log.read_text()[-3000:]}\n{sh('squeue').stdout}")

    def kill(self):
        os.killpg(self.dag.pid, signal.SIGKILL)
        self.dag.wait()

    def crbg(self, *words, **env):
        return sh(BIN / "python", "-m", "crbg", *words, cwd=self.path, env=clean(CRBG_REVISION="test", **env))

    def runs(self, pattern="*", results="results"):
        return sorted((self.path / results / "runs").glob(f"{pattern}/seed*"))

    def tries(self, pattern="*"):
        """Return the attempts of each matching run, keyed by the folder of the run."""
        return {folder: attempts.read(folder) for folder in self.runs(pattern)}

    def files(self, results="results"):
        """Return the contents of all result files, keyed by path."""
        base = self.path / results / "runs"
        names = ("record.json", "evaluation.json", "ticket.safetensors", "gates.safetensors", "history.jsonl")
        return {str(f.relative_to(base)): f.read_bytes() for name in names for f in base.rglob(name)}

    def searching(self, pattern="crbg-*", seconds=120):
        """Wait until a run has written a checkpoint, and return its last attempt."""

        def now():
            return next((attempts.last(f) for f in self.runs(pattern) if (f / "checkpoint.pt").exists()), None)

        return wait(now, seconds, lambda: self.log.read_text()[-3000:])


def wait(condition, seconds, words=lambda: ""):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s in vain:\n{words()}\n{sh('squeue').stdout}")


def results_of(made):
    """Run a clone's configuration on this machine without SLURM, and return the contents of its result files."""
    for words in (("run", "all", "--device", "cpu"), ("evaluate", "curve")):
        done = made.crbg(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    return made.files()
