"""How long runs take, how much memory they need, and how a job is cut for a cluster: estimates from recorded runs.

Imports no torch.
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
from crbg.experiments.cells import Key, distinct
from crbg.experiments.config import Cell, Config, Experiment
from crbg.experiments.spec import Spec
from crbg.storage import run_lines

# Floating-point operations a second that one core, or one GPU, sustains in a gated step: only used where no run of
# the same kind was recorded.
CPU_FLOPS = 2.5e10
CPU_FLOPS_BF16 = 2e11
GPU_FLOPS = 5.0e13

# Gated weights and multiply-adds of one image, as `measure.flops` gives them for colour images of 32 x 32 pixels (for
# LeNet 28 x 28 grey ones), and how the network was built: with timm's stem for small images, or patches of some size.
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


def size(spec: Spec) -> tuple[float, float]:
    """Estimate the gated weights of a network and its multiply-adds for one image, from its name and arguments."""
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
    """What runs of one kind took: median seconds of search for one image in one epoch, and peak memory in MB."""

    image_seconds: float
    memory_mb: float


Kind = tuple[Any, ...]


def costs(config: Config, specs: Iterable[Spec]) -> dict[Kind, Cost]:
    """Return the cost of each kind of run, from recorded runs with the data, model and method of one of the specs.

    Recorded runs count also where `reuse` is `never`.

    Raises:
        CrbgError: there are recorded files of an older layout, which would not be read.
    """
    next(record_store.recorded_with_specs(record_store.recorded_folder(config)), None)  # raises the error
    out: dict[Kind, Cost] = {}
    for path in {record_store.recorded_file(config, spec) for spec in specs}:
        if path.exists():
            out |= _costs(path.absolute(), path.stat().st_mtime_ns)
    return out


@lru_cache(maxsize=256)
def _costs(path: Path, changed: int) -> dict[Kind, Cost]:
    seen: dict[Kind, list[tuple[float, float]]] = {}
    for line in run_lines.lines(path).values():
        entry = line.parse()
        spec, p = entry.get("spec", {}), entry.get("provenance", {})
        if spec.get("epochs") and p.get("search_seconds") and p.get("processes", 1) == 1:
            own = methods.options(spec["method"], spec.get("options", {}))
            epochs = methods.work(spec["method"], own, spec.get("density"), spec["epochs"])
            images = entry.get("record", {}).get("train_images") or spec.get("limit") or info(spec["data"]).train
            seconds = search_seconds(p) / epochs / images
            seen.setdefault(_kind(spec, bool(p.get("gpu"))), []).append((seconds, p.get("peak_memory_mb", 0.0)))
    return {k: Cost(statistics.median(t for t, _ in v), max(m for _, m in v)) for k, v in seen.items()}


def search_seconds(provenance: Mapping[str, Any]) -> float:
    """Return the seconds that a search takes on an idle machine.

    On a CPU these are the CPU seconds of the search divided by its threads, where the record has them: pauses and other
    processes on the same cores do not count.
    """
    if not provenance.get("gpu") and "search_cpu_seconds" in provenance:
        return float(provenance["search_cpu_seconds"]) / float(provenance.get("threads", 1))
    return float(provenance.get("search_seconds", 0.0))


def cost_key(spec: Spec, gpu: bool) -> Kind:
    """Return the kind of a run, a key of `costs`."""
    return _kind(vars(spec), gpu)


def _kind(spec: Mapping[str, Any], gpu: bool) -> Kind:
    """Collect what the cost of an image depends on. Older records lack some fields, which then have their defaults."""
    network = json.dumps(dict(spec.get("model_args") or {}), sort_keys=True)
    return spec["method"], spec["model"], network, spec["data"], spec.get("size", 0), spec.get("precision", "fp32"), gpu


def _images(spec: Spec) -> int:
    """Count the images of an epoch."""
    entry = info(spec.data)
    every = entry.train + (entry.validation if spec.fit_on == "all" else 0)
    return min(spec.limit, every) if spec.limit else every


def on_gpu(config: Config, experiment: Experiment) -> bool:
    """Tell whether the runs of an experiment are planned for a GPU.

    They are where `device` names one, and where the experiment asks for one unless `device` is `cpu`.
    """
    return config.device.startswith("cuda") or (config.device != "cpu" and experiment.gpu > 0)


def estimate_seconds(
    config: Config, cells: Iterable[Cell], gpu: bool = False, found: Mapping[Key, Any] | None = None
) -> dict[Key, float]:
    """Estimate each cell from what an image took in runs of the same kind; else from FLOPs.

    Those of the cells that are done count before recorded runs, which may come from another machine. One step costs 6
    FLOPs for each multiply-add of an example. `found` holds what `record_store.find` gave for each cell, if that is
    known already.
    """
    mine = distinct(cells)
    if found is None:
        found = {key: record_store.find(config, c.spec, c.seed) for key, c in mine.items()}
    here: dict[Kind, list[float]] = {}
    for key, c in mine.items():
        if (got := found[key]) and c.spec.epochs and bool(got["provenance"].get("gpu")) == gpu:
            seconds = search_seconds(got["provenance"]) / epochs_of(c.spec) / _images(c.spec)
            here.setdefault(cost_key(c.spec, gpu), []).append(seconds)
    image = {kind: cost.image_seconds for kind, cost in costs(config, (c.spec for c in mine.values())).items()}
    image |= {kind: statistics.median(v) for kind, v in here.items()}
    out = {}
    for key, c in mine.items():
        seconds = image.get(cost_key(c.spec, gpu)) or _unseen(c.spec, gpu)
        out[key] = epochs_of(c.spec) * _images(c.spec) * seconds + 3.0
    return out


def _unseen(spec: Spec, gpu: bool) -> float:
    """Estimate the seconds for one image where no run of the same kind was recorded."""
    cpu = CPU_FLOPS_BF16 if spec.precision == "bf16" else CPU_FLOPS
    return 6.0 * size(spec)[1] / (GPU_FLOPS if gpu else cpu)


def epochs_of(spec: Spec) -> float:
    """Count all epochs of training that a run needs.

    A stage that several runs share (`crbg.runs.stage_cache`) is counted in each of them.
    """
    return methods.work(spec.method, spec.resolved(), spec.density, spec.epochs)


@dataclass(frozen=True)
class Slices:
    """How a job is cut for a cluster: the minutes of each slice it may take, and its memory in MB."""

    minutes: tuple[int, ...]
    memory_mb: int

    @property
    def most(self) -> int:
        """Return the number of slices that the job may take."""
        return len(self.minutes)


def slices(config: Config, cells: list[Cell], gpu: bool, longest: int) -> Slices:
    """Cut a job into slices of at most `longest` minutes, the wall time that the cluster allows.

    The first slice asks for twice the estimate and five minutes, and each further one for twice as much. A job that
    does not fit into one slice continues in the next from its checkpoint. Two more slices than the estimate needs are
    allowed, for a slow machine and for a kill. The memory is that of the first slice; the workflow raises it for a job
    that was killed.
    """
    seconds = sum(estimate_seconds(config, cells, gpu).values())
    need = math.ceil(seconds / 30) + 5
    count = math.ceil(need / longest) + 2
    known = costs(config, (c.spec for c in cells))
    peaks = [cost.memory_mb for c in cells if (cost := known.get(cost_key(c.spec, False)))]
    memory = max(2000, math.ceil((1.5 * max(peaks) + 1000) / 500) * 500) if peaks else 4000
    return Slices(tuple(min(longest, need * 2**i) for i in range(count)), 8000 if gpu else memory)


def margin(minutes: float) -> float:
    """Return the seconds kept free before a deadline.

    A checkpoint is written in them, and a scheduler has started its clock before this process did.
    """
    return min(120.0, 6.0 + 1.8 * minutes)


def kills(config: Config, job: str) -> int:
    """Count how often a job was killed, for whatever reason, since the latest workflow first tried it."""
    tries = attempts.read(record_store.job_folder(config, job))
    first = max((i for i, a in enumerate(tries) if a.get("attempt") == 1), default=0)
    return sum(a["outcome"] == attempts.KILLED for a in tries[first:])
