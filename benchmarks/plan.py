"""Measure the cost of planning: seconds and memory of `snakemake -n` for generated configurations of growing size.

    python benchmarks/plan.py --runs 500 5000 --per-job 1 20

A generated configuration contains main experiments only, each with 20 combinations of arm and density and 10 seeds. No
run is finished. The script prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
SHAPE = 20 * 10  # runs in one experiment


def generate(folder: Path, runs: int, per_job: int) -> int:
    """Copy the project to a folder, with a generated configuration of at least `runs` runs; return the exact number."""
    for part in ("crbg", "workflow", "profiles", "slurm", "paper/claims.yaml", "Snakefile", "environment.yml"):
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    count = math.ceil(runs / SHAPE)
    base = {"data": "digits", "model": "lenet-32-16", "method": "edge_popup", "scale": 0.3}
    densities = [round(0.05 + 0.09 * i, 2) for i in range(10)]
    grid = {"density": densities}
    experiments = {
        f"part_{i}": {
            "role": "main",
            "seeds": list(range(10)),
            "cells_per_job": per_job,
            "base": base | {"epochs": i + 1},
            "arms": {"a": {"grid": grid}, "b": {"set": {"batch": 64}, "grid": dict(grid)}},
        }
        for i in range(count)
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"experiments": experiments}))
    return count * SHAPE


def measure(runs: int, per_job: int) -> dict[str, object]:
    """Measure a dry run with the SLURM profile in a separate process; return one row of the table."""
    with tempfile.TemporaryDirectory() as name:
        exact = generate(Path(name), runs, per_job)
        snakemake = str(Path(sys.executable).parent / "snakemake")
        command = [snakemake, "-n", *("--quiet", "all"), *("--profile", "slurm"), "--", "all"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CRBG_")} | {"HOME": name}
        started, before = time.monotonic(), computed()
        subprocess.run(
            command, cwd=name, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seconds, busy = time.monotonic() - started, computed() - before
    jobs = math.ceil(SHAPE / per_job) * exact // SHAPE
    return {"runs": exact, "runs per job": per_job, "jobs": jobs, "seconds": f"{seconds:.1f}", "CPU s": f"{busy:.1f}"}


def computed() -> float:
    """Return the CPU time of all child processes so far, which depends little on the load of the machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--per-job", type=int, nargs="+", default=[20])
    args = parser.parse_args()
    rows = []
    for runs in sorted(args.runs):
        for per_job in sorted(args.per_job, reverse=True):
            row = measure(runs, per_job)
            # This is the peak of all child processes so far. Sizes grow, so the latest process has the largest peak.
            rows.append(row | {"MB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)})
    print(tabulate(rows, headers="keys", tablefmt="pipe"))


if __name__ == "__main__":
    main()
