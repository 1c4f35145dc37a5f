"""What is still to do, how long it takes, and how a cluster is asked for it: estimates from recorded runs.

Imports no torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg import methods
from crbg.data.datasets import info
from crbg.experiments import attempts, record_store
from crbg.experiments.config import Cell, Config
from crbg.experiments.spec import Spec

CPU_FLOPS = 2.5e10  # what one core sustains in a gated LeNet step; only used before any run time was recorded
GPU_FLOPS = 5.0e13
CPU_FLOPS_BF16 = 2e11


# Weights and multiply-adds of one colour image of 32 pixels, as measured by `measure.flops`; the patch or stem that was
# built with.
SIZES: dict[str, tuple[float, float, Any]] = {
    "conv2": (4.30e6, 4.38e7, None), "conv4": (2.43e6, 9.83e7, None), "conv6": (2.26e6, 1.54e8, None), "conv8": (5.28e6, 2.10e8, None),
    "resnet20": (2.91e5, 4.29e7, None), "vgg16": (1.47e7, 3.13e8, None),
    "timm:resnet18": (1.12e7, 5.55e8, "cifar"), "timm:resnet50": (2.35e7, 1.30e9, "cifar"),
    "timm:wide_resnet50_2": (6.68e7, 3.68e9, "cifar"),
    "timm:vit_base_patch16_224": (8.50e7, 5.52e9, 4), "timm:vit_small_patch16_224": (2.13e7, 1.38e9, 4),
    "timm:vit_tiny_patch16_224": (5.32e6, 3.46e8, 4), "timm:swin_tiny_patch4_window7_224": (2.74e7, 3.58e8, 2),
}  # fmt: skip
UNKNOWN = (2.5e7, 1.3e9, None)


def size(spec: Spec) -> tuple[float, float]:
    """Estimate the gated weights of a network and the multiply-adds of one image, from its name and arguments alone."""
    if spec.model.startswith("lenet-"):
        weights = float(sum(a * b for a, b in spec.layer_sizes()))
        return weights, weights
    weights, products, built = SIZES.get(spec.model, UNKNOWN)
    width, edge = float(spec.model_args.get("width", 1.0)), spec.size or info(spec.data).shape[1]
    products *= (width * edge / 32) ** 2
    if built == "cifar" and spec.model_args.get("stem") != "cifar":
        products /= 15  # a stride of 2 and a maximum at the start leave a sixteenth of the pixels
    elif isinstance(built, int):
        default = 16 if ":vit" in spec.model else 4
        products *= (built / int(spec.model_args.get("patch_size", default))) ** 2
    return weights * width**2, products


@dataclass(frozen=True)
class Cost:
    """What runs of one kind took: median seconds of search for an image and epoch, largest peak of memory in MB."""

    image_seconds: float
    memory_mb: float


def costs(config: Config) -> dict[tuple[Any, ...], Cost]:
    """Learn from all recorded runs, whether or not they may stand in for new ones: kind of run -> cost."""
    folder = record_store.recorded_folder(config)
    return _costs(folder.absolute(), folder.stat().st_mtime_ns if folder.exists() else 0)


@lru_cache(maxsize=2)
def _costs(folder: Path, changed: int) -> dict[tuple[Any, ...], Cost]:
    seen: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for spec, entry in record_store.recorded_with_specs(folder):
        p = entry.get("provenance", {})
        if spec.get("epochs") and p.get("search_seconds") and p.get("processes", 1) == 1:
            seconds = search_seconds(p)
            epochs = methods.work(
                spec["method"],
                methods.options(spec["method"], spec.get("options", {})),
                spec.get("density"),
                spec["epochs"],
            )
            images = entry.get("record", {}).get("train_images") or spec.get("limit") or info(spec["data"]).train
            kind = _kind(spec, bool(p.get("gpu")))
            seen.setdefault(kind, []).append((seconds / epochs / images, p.get("peak_memory_mb", 0.0)))
    return {k: Cost(statistics.median(t for t, _ in v), max(m for _, m in v)) for k, v in seen.items()}


def search_seconds(provenance: Mapping[str, Any]) -> float:
    """Return the seconds that a search takes on an idle machine.

    On a processor these are its processor seconds divided among its threads, where the record has them: a run
    that was paused, or shared its cores, does not seem longer.
    """
    if not provenance.get("gpu") and "search_cpu_seconds" in provenance:
        return float(provenance["search_cpu_seconds"]) / float(provenance.get("threads", 1))
    return float(provenance.get("search_seconds", 0.0))


def cost_key(spec: Spec, gpu: bool) -> tuple[Any, ...]:
    """Name the kind of a run, as `costs` sorts them."""
    return _kind(vars(spec), gpu)


def _kind(spec: Mapping[str, Any], gpu: bool) -> tuple[Any, ...]:
    """Collect what the cost of an image depends on; older records lack some fields, whose defaults they have."""
    network = json.dumps(dict(spec.get("model_args") or {}), sort_keys=True)
    return spec["method"], spec["model"], network, spec["data"], spec.get("size", 0), spec.get("precision", "fp32"), gpu


def _images(spec: Spec) -> int:
    """Count the images of an epoch."""
    entry = info(spec.data)
    every = entry.train + (entry.validation if spec.fit_on == "all" else 0)
    return min(spec.limit, every) if spec.limit else every


def estimate_seconds(config: Config, cells: list[Cell], gpu: bool = False) -> dict[tuple[str, int], float]:
    """Estimate each cell from what an image took in runs of the same kind; else from FLOPs.

    Those of the cells that are done count before recorded runs, which may come from another machine. One step costs 6
    FLOPs for each multiply-add of an example.
    """
    here: dict[tuple[Any, ...], list[float]] = {}
    for c in cells:
        if (
            (got := record_store.find(config, c.spec, c.seed))
            and c.spec.epochs
            and bool(got["provenance"].get("gpu")) == gpu
        ):
            here.setdefault(cost_key(c.spec, gpu), []).append(
                search_seconds(got["provenance"]) / epochs_of(c.spec) / _images(c.spec)
            )
    image = {k: cost.image_seconds for k, cost in costs(config).items()} | {
        k: statistics.median(v) for k, v in here.items()
    }
    out = {}
    for c in cells:
        seconds = image.get(cost_key(c.spec, gpu))
        if seconds is None:
            rate = GPU_FLOPS if gpu else CPU_FLOPS_BF16 if c.spec.precision == "bf16" else CPU_FLOPS
            seconds = 6.0 * size(c.spec)[1] / rate
        out[c.key] = epochs_of(c.spec) * _images(c.spec) * seconds + 3.0
    return out


def epochs_of(spec: Spec) -> float:
    """Count the epochs that a run costs in all.

    What it shares with others (`crbg.runs.stage_cache`) is counted in each of them.
    """
    return methods.work(spec.method, spec.resolved(), spec.density, spec.epochs)


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

    Twice the estimate and five minutes are asked for, doubled on each further attempt; a job that one slice cannot hold
    goes on in the next from its checkpoint. Two more slices than the estimate needs are allowed, for a slow machine and
    a killed one. Memory is that of the first slice: who was killed gets more.
    """
    seconds = sum(estimate_seconds(config, cells, gpu).values())
    need = math.ceil(seconds / 30) + 5
    count = math.ceil(need / longest) + 2
    known = costs(config)
    peaks = [cost.memory_mb for c in cells if (cost := known.get(cost_key(c.spec, False)))]
    memory = 8000 if gpu else max(2000, math.ceil((1.5 * max(peaks) + 1000) / 500) * 500) if peaks else 4000
    return Slices(tuple(min(longest, need * 2**i) for i in range(count)), memory)


def schedule(config: Config, cells: list[Cell], minutes: float, given: str = "") -> str:
    """Say in which of the slices of so many minutes the missing runs come, in the order of the configuration.

    A slice is one call of `crbg run`, which does what is missing in that order and leaves a checkpoint at its deadline.
    """
    rows: list[list[Any]] = []
    spent, bound = 0.0, 60 * minutes - margin(minutes)
    gpu = {name: bool(config.experiment(name).gpu) for name in dict.fromkeys(c.experiment for c in cells)}
    first_of: dict[tuple[str, int], Cell] = {}
    for c in cells:
        first_of.setdefault(c.key, c)
    missing = [c for c in first_of.values() if not record_store.find(config, c.spec, c.seed)]
    times = {
        k: v
        for name in gpu
        for k, v in estimate_seconds(config, [c for c in cells if c.experiment == name], gpu[name]).items()
    }
    for place in dict.fromkeys((c.experiment, c.arm) for c in missing):
        mine = [c for c in missing if (c.experiment, c.arm) == place]
        seconds = sum(times[c.key] for c in mine)
        first, spent = spent, spent + seconds
        last = max(first, spent - 1)
        slices_here = f"{int(first / bound) + 1}" + (
            f" to {int(last / bound) + 1}" if int(last / bound) > int(first / bound) else ""
        )
        rows.append([*place, len(mine), "GPU" if gpu[place[0]] else "CPU", f"{seconds / 60:.0f}", slices_here])
    from tabulate import tabulate

    head = ["experiment", "arm", "runs", "on", "minutes", "slices"]
    count = math.ceil(spent / bound)
    text = f"{count} slices of {minutes:g} minutes, each the same command, until it ends with status 0 instead of 75:\n  crbg run{given}"
    return (
        tabulate(rows, head, disable_numparse=True) + f"\n{text} --deadline-minutes {minutes:g}"
        if rows
        else "nothing is missing"
    )


def margin(minutes: float) -> float:
    """Seconds kept free before a deadline: to write a checkpoint, and for what a scheduler started before this process."""
    return min(120.0, 6.0 + 1.8 * minutes)


def kills(config: Config, job: str) -> int:
    """Count how often a job was killed, whatever it was by, since it was first tried by the latest workflow."""
    tries = attempts.read(record_store.job_folder(config, job))
    first = max((i for i, a in enumerate(tries) if a.get("attempt") == 1), default=0)
    return sum(a["outcome"] == attempts.KILLED for a in tries[first:])


def table(config: Config, cells: list[Cell]) -> str:
    """Tabulate runs, done, missing, time and disk for each experiment."""
    rows: list[list[Any]] = []
    for name in dict.fromkeys(c.experiment for c in cells):
        mine = list({c.key: c for c in cells if c.experiment == name}.values())
        gpu = bool(config.experiment(name).gpu)
        times = estimate_seconds(config, mine, gpu)
        missing = [c for c in mine if not record_store.find(config, c.spec, c.seed)]
        seconds = sum(times[c.key] for c in missing)
        disk = sum(9.0 * size(c.spec)[0] + 2e4 for c in missing) / 2**20
        rows.append([name, len(mine), len(mine) - len(missing), len(missing), f"{seconds / 3600:.2f}",
                     f"{seconds / 3600 if gpu else 0.0:.2f}", f"{disk:.0f}"])  # fmt: skip
    head = ["experiment", "runs", "done", "missing", "hours", "GPU hours", "disk MiB"]
    if len(rows) > 1:
        totals = [sum(float(str(r[i])) for r in rows) for i in range(1, 7)]
        rows.append(
            ["together", *(f"{t:.0f}" for t in totals[:3]), *(f"{t:.2f}" for t in totals[3:5]), f"{totals[5]:.0f}"]
        )
    from tabulate import tabulate

    return (
        tabulate(rows, head, disable_numparse=True) + "\nhours are those of one process; a shared machine takes longer"
    )
