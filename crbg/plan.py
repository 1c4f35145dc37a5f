"""What is still to do, how long it takes, and how a cluster is asked for it: estimates from recorded runs. Imports no torch."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg import attempts, store
from crbg.config import Cell, Config
from crbg.data import info
from crbg.files import read_json
from crbg.spec import Spec

CPU_FLOPS = 2.5e10  # what one core sustains in a gated LeNet step; only used before any run time was recorded
GPU_FLOPS = 5.0e13
KIND = ("method", "model", "data")  # fields of a spec that runs of one kind share, with the device


def weight_count(spec: Spec) -> float:
    """Estimate the gated weights of a network from its name alone."""
    if spec.model.startswith("lenet-"):
        return float(sum(a * b for a, b in spec.layer_sizes()))
    return 25e6


@dataclass(frozen=True)
class Cost:
    """What runs of one kind took: median seconds of search an epoch, largest peak of memory in MB."""

    epoch_seconds: float
    memory_mb: float


def costs(config: Config) -> dict[tuple[Any, ...], Cost]:
    """Learn from all recorded runs, whether or not they may stand in for new ones: (method, model, data, on a GPU) -> cost."""
    folder = store.recorded_folder(config)
    return _costs(folder, folder.stat().st_mtime_ns if folder.exists() else 0)


@lru_cache(maxsize=2)
def _costs(folder: Path, changed: int) -> dict[tuple[Any, ...], Cost]:
    seen: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = read_json(path)
        spec = found.get("spec", {})
        for entry in found.get("runs", {}).values():
            p = entry.get("provenance", {})
            if spec.get("epochs") and p.get("search_seconds") and p.get("processes", 1) == 1:
                key = tuple(spec[field] for field in KIND)
                seen.setdefault((*key, bool(p.get("gpu"))), []).append((p["search_seconds"] / spec["epochs"], p.get("peak_memory_mb", 0.0)))
    return {k: Cost(statistics.median(t for t, _ in v), max(m for _, m in v)) for k, v in seen.items()}


def cost_key(spec: Spec, gpu: bool) -> tuple[Any, ...]:
    """Name the kind of a run, as `costs` sorts them."""
    return (*(getattr(spec, field) for field in KIND), gpu)


def estimate_seconds(config: Config, cells: list[Cell], gpu: bool = False) -> dict[tuple[str, int], float]:
    """Estimate each cell from what an epoch took in runs of the same method, model and data; else from FLOPs.

    Those of the cells that are done count before recorded runs, which may come from another machine. One step costs 6 FLOPs per
    weight and example; a network outside the LeNet family reuses each weight about 100 times.
    """
    here: dict[tuple[Any, ...], list[float]] = {}
    for c in cells:
        if (got := store.find(config, c.spec, c.seed)) and c.spec.epochs and bool(got["provenance"].get("gpu")) == gpu:
            here.setdefault(cost_key(c.spec, gpu), []).append(float(got["provenance"].get("search_seconds", 0.0)) / c.spec.epochs)
    epoch = {k: cost.epoch_seconds for k, cost in costs(config).items()} | {k: statistics.median(v) for k, v in here.items()}
    out = {}
    for c in cells:
        if (seconds := epoch.get(cost_key(c.spec, gpu))) is not None:
            out[c.key] = c.spec.epochs * seconds + 3.0
        else:
            images = c.spec.limit or info(c.spec.data).train
            reuse = 1.0 if c.spec.model.startswith("lenet-") else 100.0
            work = 6.0 * weight_count(c.spec) * reuse * images * c.spec.epochs
            out[c.key] = work / (GPU_FLOPS if gpu else CPU_FLOPS) + 3.0
    return out


@dataclass(frozen=True)
class Slices:
    """How a job is cut for a cluster: minutes of its n-th slice, how many it may take, memory in MB."""

    minutes: tuple[int, ...]
    memory_mb: int

    @property
    def most(self) -> int:
        """Give the number of slices that the job may take."""
        return len(self.minutes)


def slices(config: Config, cells: list[Cell], gpu: bool, longest: int) -> Slices:
    """Cut a job into slices of at most `longest` minutes, the wall time that the cluster allows.

    Twice the estimate and five minutes are asked for, doubled on each further attempt; a job that one slice cannot hold goes on
    in the next from its checkpoint. Two more slices than the estimate needs are allowed, for a slow machine and a killed one.
    Memory is that of the first slice: who was killed gets more.
    """
    seconds = sum(estimate_seconds(config, cells, gpu).values())
    need = math.ceil(seconds / 30) + 5
    count = math.ceil(need / longest) + 2
    known = costs(config)
    peaks = [cost.memory_mb for c in cells if (cost := known.get(cost_key(c.spec, False)))]
    memory = 8000 if gpu else max(2000, math.ceil((1.5 * max(peaks) + 1000) / 500) * 500) if peaks else 4000
    return Slices(tuple(min(longest, need * 2**i) for i in range(count)), memory)


def kills(config: Config, job: str) -> int:
    """Count how often a job was killed, whatever it was by, since it was first tried by the latest workflow."""
    tries = attempts.read(store.job_folder(config, job))
    first = max((i for i, a in enumerate(tries) if a.get("attempt") == 1), default=0)
    return sum(a["outcome"] == attempts.KILLED for a in tries[first:])


def table(config: Config, cells: list[Cell]) -> str:
    """Tabulate runs, done, missing, time and disk for each experiment."""
    rows: list[list[Any]] = []
    for name in dict.fromkeys(c.experiment for c in cells):
        mine = list({c.key: c for c in cells if c.experiment == name}.values())
        gpu = bool(config.experiment(name).gpu)
        times = estimate_seconds(config, mine, gpu)
        missing = [c for c in mine if not store.find(config, c.spec, c.seed)]
        seconds = sum(times[c.key] for c in missing)
        disk = sum(9.0 * weight_count(c.spec) + 2e4 for c in missing) / 2**20
        rows.append([name, len(mine), len(mine) - len(missing), len(missing), f"{seconds / 3600:.2f}",
                     f"{seconds / 3600 if gpu else 0.0:.2f}", f"{disk:.0f}"])  # fmt: skip
    head = ["experiment", "runs", "done", "missing", "hours", "GPU hours", "disk MiB"]
    if len(rows) > 1:
        totals = [sum(float(str(r[i])) for r in rows) for i in range(1, 7)]
        rows.append(["together", *(f"{t:.0f}" for t in totals[:3]), *(f"{t:.2f}" for t in totals[3:5]), f"{totals[5]:.0f}"])
    from tabulate import tabulate

    return tabulate(rows, head, disable_numparse=True) + "\nhours are those of one process; a shared machine takes longer"
