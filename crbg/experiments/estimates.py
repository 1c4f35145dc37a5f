"""Estimate the time and memory of runs from recorded runs, and split jobs into time slices for a cluster.

This module does not import torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg import methods
from crbg.data.datasets import info
from crbg.experiments import attempts, record_store
from crbg.experiments.config import Cell, Config, Experiment
from crbg.experiments.experiment import Key, distinct
from crbg.experiments.record import Run
from crbg.experiments.spec import Spec

# Floating-point operations per second that one core or one GPU sustains in a training step with gates. They are used
# only if no run of the same kind was recorded.
CPU_FLOPS = 2.5e10
CPU_FLOPS_BF16 = 2e11
GPU_FLOPS = 5.0e13

# For each network: the number of gated weights; the multiply-adds per image, counted by `measure.flops` for 32 x 32
# colour images (28 x 28 grey images for LeNet); and its stem or patch size, if adapted to small images.
SIZES: dict[str, tuple[float, float, Any]] = {
    "lenet-300-100": (2.66e5, 2.66e5, None),
    "conv2": (4.30e6, 4.38e7, None), "conv4": (2.43e6, 9.83e7, None), "conv6": (2.26e6, 1.54e8, None),
    "conv8": (5.28e6, 2.10e8, None),
    "resnet20": (2.91e5, 4.29e7, None), "resnet32": (4.85e5, 7.12e7, None), "resnet44": (6.78e5, 9.95e7, None),
    "resnet56": (8.72e5, 1.28e8, None), "resnet110": (1.74e6, 2.55e8, None),
    "vgg11": (9.22e6, 1.53e8, None), "vgg13": (9.41e6, 2.28e8, None), "vgg16": (1.47e7, 3.13e8, None),
    "vgg19": (2.00e7, 3.98e8, None),
    "timm:resnet18": (1.12e7, 5.55e8, "cifar"), "timm:resnet50": (2.35e7, 1.30e9, "cifar"),
    "timm:wide_resnet50_2": (6.68e7, 3.68e9, "cifar"),
    "timm:vit_base_patch16_224": (8.50e7, 5.60e9, 4), "timm:vit_small_patch16_224": (2.13e7, 1.42e9, 4),
    "timm:vit_tiny_patch16_224": (5.32e6, 3.65e8, 4), "timm:swin_tiny_patch4_window7_224": (2.74e7, 4.24e8, 2),
}  # fmt: skip
UNKNOWN = (2.5e7, 1.3e9, None)
OTHER_DATA = {"graph": (3.7e5, 1.2e6), "text": (5.4e5, 5e7)}  # weights, multiply-adds per example


def size(spec: Spec) -> tuple[float, float]:
    """Estimate the number of gated weights of a network and its multiply-adds per example, from its name."""
    if spec.model.startswith("lenet-"):
        weights = float(sum(a * b for a, b in spec.layer_sizes()))
        return weights, weights
    if (entry := info(spec.data)).kind != "images":
        return OTHER_DATA.get(entry.kind, (5e4, 5e4 * entry.shape[0]))  # a series: all weights at every step of time
    weights, products, built = SIZES.get(spec.model, UNKNOWN)
    width, edge = float(spec.model_args.get("width", 1.0)), spec.size or entry.shape[1]
    products *= (width * edge / 32) ** 2
    if built == "cifar" and spec.model_args.get("stem") != "cifar":
        products /= 15  # the standard stem (stride 2, then max pooling) leaves 1/16 of the pixels
    elif isinstance(built, int):
        default = 16 if ":vit" in spec.model else 4
        products *= (built / int(spec.model_args.get("patch_size", default))) ** 2
    return weights * width**2, products


@dataclass(frozen=True)
class Cost:
    """The cost of runs of one kind: median search time in seconds per image and epoch, and peak memory in MB."""

    image_seconds: float
    memory_mb: float


Kind = tuple[Any, ...]


def costs(config: Config, specs: Iterable[Spec]) -> dict[Kind, Cost]:
    """Return the cost of each kind of run, from recorded runs with the data, model and method of one of the specs.

    Recorded runs are used even if `reuse` is `never`.

    Raises:
        CrbgError: the folder of recorded runs contains files of an older layout, which would be ignored.
    """
    record_store.refuse_old(record_store.recorded_folder(config))
    out: dict[Kind, Cost] = {}
    for path in {record_store.recorded_file(config, spec) for spec in specs}:
        if path.exists():
            out |= _costs(path.absolute(), path.stat().st_mtime_ns)
    return out


@lru_cache(maxsize=256)
def _costs(path: Path, changed: int) -> dict[Kind, Cost]:
    seen: dict[Kind, list[tuple[float, float]]] = {}
    for run in record_store.runs_in(path):
        spec, p = run.record.spec, run.provenance
        if spec.get("epochs") and p.get("search_seconds") and p.get("processes", 1) == 1:
            own = methods.options(spec["method"], spec.get("options", {}))
            epochs = methods.work(spec["method"], own, spec.get("density"), spec["epochs"])
            seconds = search_seconds(p) / epochs / run.record.train_images
            seen.setdefault(_kind(spec, bool(p.get("gpu"))), []).append((seconds, p.get("peak_memory_mb", 0.0)))
    return {k: Cost(statistics.median(t for t, _ in v), max(m for _, m in v)) for k, v in seen.items()}


def search_seconds(provenance: Mapping[str, Any]) -> float:
    """Return the time that a search takes on an idle machine, in seconds.

    On a CPU, this is the CPU time of the search divided by its number of threads, if it was recorded. It excludes
    pauses and the time of other processes on the same cores.
    """
    if not provenance.get("gpu") and "search_cpu_seconds" in provenance:
        return float(provenance["search_cpu_seconds"]) / float(provenance.get("threads", 1))
    return float(provenance.get("search_seconds", 0.0))


def cost_key(spec: Spec, gpu: bool) -> Kind:
    """Return the kind of a run, which is its key in the result of `costs`."""
    return _kind(vars(spec), gpu)


def _kind(spec: Mapping[str, Any], gpu: bool) -> Kind:
    """Return all fields on which the cost per image depends. Fields missing in older records take their defaults."""
    network = json.dumps(dict(spec.get("model_args") or {}), sort_keys=True)
    return spec["method"], spec["model"], network, spec["data"], spec.get("size", 0), spec.get("precision", "fp32"), gpu


def _images(spec: Spec) -> int:
    """Return the number of images in one epoch."""
    entry = info(spec.data)
    every = entry.train + (entry.validation if spec.fit_on == "all" else 0)
    return min(spec.limit, every) if spec.limit else every


def on_gpu(config: Config, experiment: Experiment) -> bool:
    """Return whether the runs of an experiment are planned for a GPU.

    This is the case if `device` names a GPU, or if the experiment requires a GPU and `device` is not `cpu`.
    """
    return config.device.startswith("cuda") or (config.device != "cpu" and experiment.gpu > 0)


def estimate_seconds(
    config: Config, cells: Iterable[Cell], gpu: bool = False, found: Mapping[Key, Run | None] | None = None
) -> dict[Key, float]:
    """Estimate the time of each cell (a spec with a seed), in seconds.

    The estimate uses the time per image in runs of the same kind. Finished runs among `cells` take precedence over
    recorded runs, which may come from another machine. If there is no run of the same kind, training is assumed to
    cost 6 FLOPs for each multiply-add and image. `found` may contain the result of `record_store.find_runs`.
    """
    mine = distinct(cells)
    if found is None:
        found = record_store.find_runs(config, mine.values())
    here: dict[Kind, list[float]] = {}
    for key, c in mine.items():
        if (run := found[key]) and c.spec.epochs and bool(run.provenance.get("gpu")) == gpu:
            seconds = search_seconds(run.provenance) / epochs_of(c.spec) / _images(c.spec)
            here.setdefault(cost_key(c.spec, gpu), []).append(seconds)
    image = {kind: cost.image_seconds for kind, cost in costs(config, (c.spec for c in mine.values())).items()}
    image |= {kind: statistics.median(v) for kind, v in here.items()}
    out = {}
    for key, c in mine.items():
        seconds = image.get(cost_key(c.spec, gpu)) or _unseen(c.spec, gpu)
        out[key] = epochs_of(c.spec) * _images(c.spec) * seconds + 3.0
    return out


def _unseen(spec: Spec, gpu: bool) -> float:
    """Estimate the training time per image in seconds from FLOPs, if no run of the same kind was recorded."""
    cpu = CPU_FLOPS_BF16 if spec.precision == "bf16" else CPU_FLOPS
    return 6.0 * size(spec)[1] / (GPU_FLOPS if gpu else cpu)


def epochs_of(spec: Spec) -> float:
    """Return the total number of training epochs of a run.

    A stage that several runs share (`crbg.runs.stage_cache`) is counted for each of them.
    """
    return methods.work(spec.method, spec.resolved(), spec.density, spec.epochs)


@dataclass(frozen=True)
class Slices:
    """The time slices of a job on a cluster: the minutes of each slice, and the memory in MB."""

    minutes: tuple[int, ...]
    memory_mb: int

    @property
    def most(self) -> int:
        """Return the maximum number of slices of the job."""
        return len(self.minutes)


def slices(config: Config, cells: list[Cell], gpu: bool, longest: int) -> Slices:
    """Split a job into slices of at most `longest` minutes, the wall-time limit of the cluster.

    The first slice requests twice the estimated time plus five minutes, and each further slice requests twice as much
    as the one before. A job that does not finish in one slice continues from its checkpoint in the next. Two slices
    more than the estimate requires are allowed, in case the machine is slow or the job is killed. The memory is that
    of the first slice; the workflow increases it if the job was killed.
    """
    seconds = sum(estimate_seconds(config, cells, gpu).values())
    need = math.ceil(seconds / 30) + 5
    count = math.ceil(need / longest) + 2
    known = costs(config, (c.spec for c in cells))
    peaks = [cost.memory_mb for c in cells if (cost := known.get(cost_key(c.spec, False)))]
    memory = max(2000, math.ceil((1.5 * max(peaks) + 1000) / 500) * 500) if peaks else 4000
    return Slices(tuple(min(longest, need * 2**i) for i in range(count)), 8000 if gpu else memory)


def margin(minutes: float) -> float:
    """Return the safety margin before a deadline, in seconds.

    It leaves time to write a checkpoint, and allows for a scheduler whose clock starts before this process does.
    """
    return min(120.0, 6.0 + 1.8 * minutes)


def kills(config: Config, job: str) -> int:
    """Return how often a job was killed, for any reason, since the latest workflow first started it."""
    tries = attempts.read(record_store.job_folder(config, job))
    first = max((i for i, a in enumerate(tries) if a.get("attempt") == 1), default=0)
    return sum(a["outcome"] == attempts.KILLED for a in tries[first:])
