"""Where records are found: fresh ones under results/runs, committed ones under results/recorded. Imports no torch.

A recorded file holds all seeds of one spec: {"spec", "digest", "runs": {seed: {"record", "provenance", "evaluation"}}}.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg import attempts, lock
from crbg.config import Cell, Config
from crbg.data import info
from crbg.errors import CrbgError
from crbg.files import read_json, write_bytes, write_json
from crbg.spec import Spec, as_dict, folder

CPU_FLOPS = 2.5e10  # what one core sustains in a gated LeNet step; only used before any run time was recorded
GPU_FLOPS = 5.0e13
MOST_ROWS = 40  # of `crbg status`
LAST_WORDS = 5  # lines of a log that it quotes


def recorded_folder(config: Config) -> Path:
    """Name the folder of committed records; a demonstration has none."""
    return Path("results/recorded")


def run_folder(config: Config, spec: Spec, seed: int) -> Path:
    """Name the folder of a fresh run."""
    return folder(config.results, spec, seed)


def find(config: Config, spec: Spec, seed: int, evaluated: bool = False) -> dict[str, Any] | None:
    """Return {"record", "provenance", "evaluation"?, "origin"} of a run, or None while it is missing.

    A fresh run goes before a recorded one. Recorded runs count only with `reuse: recorded`.
    """
    where = run_folder(config, spec, seed)
    if (where / "record.json").exists() and (not evaluated or _evaluated(where)):
        out = {
            "record": read_json(where / "record.json"),
            "provenance": read_json(where / "provenance.json"),
            "origin": "this run",
        }
        if (where / "evaluation.json").exists():
            out["evaluation"] = read_json(where / "evaluation.json", "evaluation")
        return out
    if config.reuse == "recorded" and not config.demonstration:
        path = recorded_folder(config) / f"{spec.slug()}.json"
        if path.exists():
            stat = path.stat()
            try:
                entry = dict(_read(path, stat.st_size, stat.st_mtime_ns)["runs"]).get(str(seed))
            except (KeyError, TypeError, ValueError):
                raise CrbgError(f"{path} is not a file of recorded runs; restore it from version control") from None
            if entry and (not evaluated or "evaluation" in entry or entry["record"]["status"] != "ok"):
                if entry["record"].get("digest") != spec.digest():
                    raise CrbgError(f"{path} records another spec than its name says; restore it from version control")
                return dict(entry) | {"origin": "recorded"}
    return None


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> dict[str, Any]:
    """Read a recorded file once for all its seeds, which come one after the other, and again when it has changed."""
    return read_json(path)


def recorded_ticket(config: Config, spec: Spec, seed: int) -> Path:
    """Name the committed ticket of a run; only a few runs have one."""
    return recorded_folder(config) / "tickets" / f"{spec.slug()}-seed{seed}.safetensors"


def ticket_path(config: Config, spec: Spec, seed: int) -> Path | None:
    """Find the ticket of a run: the fresh one, or else the committed one."""
    places = [run_folder(config, spec, seed) / "ticket.safetensors"]
    if config.reuse == "recorded" and not config.demonstration:
        places.append(recorded_ticket(config, spec, seed))
    return next((p for p in places if p.exists()), None)


def _evaluated(where: Path) -> bool:
    return (where / "evaluation.json").exists() or read_json(where / "record.json").get("status") != "ok"


def record(config: Config, cells: Iterable[Cell]) -> int:
    """Copy finished fresh runs into results/recorded; recorded seeds that have no fresh run are kept."""
    if config.demonstration:
        raise CrbgError("a demonstration is never recorded as evidence; leave the quickstart overlay out")
    count = 0
    seeds: dict[str, tuple[Spec, set[int]]] = {}
    for c in cells:
        seeds.setdefault(c.spec.digest(), (c.spec, set()))[1].add(c.seed)
    for spec, wanted in seeds.values():
        path = recorded_folder(config) / f"{spec.slug()}.json"
        runs = dict(read_json(path)["runs"]) if path.exists() else {}
        for seed in sorted(wanted):
            where = run_folder(config, spec, seed)
            if not (where / "record.json").exists():
                continue
            entry = {"record": read_json(where / "record.json"), "provenance": read_json(where / "provenance.json")}
            if (where / "evaluation.json").exists():
                entry["evaluation"] = read_json(where / "evaluation.json")
            elif "evaluation" in (old := runs.get(str(seed), {})) and old["record"] == entry["record"]:
                entry["evaluation"] = old["evaluation"]
            runs[str(seed)] = entry
            count += 1
        if runs:
            write_json(path, {"spec": as_dict(spec), "digest": spec.digest(), "runs": runs})
    return count


def record_tickets(config: Config, cells: Iterable[Cell]) -> int:
    """Copy the tickets of finished fresh runs beside the records; a run that trained weights has none."""
    count = 0
    for c in cells:
        where = run_folder(config, c.spec, c.seed)
        if (where / "record.json").exists() and (where / "ticket.safetensors").exists():
            write_bytes(recorded_ticket(config, c.spec, c.seed), (where / "ticket.safetensors").read_bytes())
            count += 1
    return count


def weight_count(spec: Spec) -> float:
    """Estimate the gated weights of a network from its name alone."""
    if spec.model.startswith("lenet-"):
        return float(sum(a * b for a, b in layer_sizes(spec)))
    return 25e6


def layer_sizes(spec: Spec) -> list[tuple[int, int]]:
    """(inputs, outputs) of each layer of a fully connected network, from its name."""
    entry = info(spec.data)
    return list(itertools.pairwise([math.prod(entry.shape), *map(int, spec.model.split("-")[1:]), entry.classes]))


@dataclass(frozen=True)
class Cost:
    """What runs of one kind took: median seconds of search an epoch, largest peak of memory in MB."""

    epoch_seconds: float
    memory_mb: float


def costs(config: Config) -> dict[tuple[Any, ...], Cost]:
    """Learn from all recorded runs, whether or not they may stand in for new ones: (method, model, data, on a GPU) -> cost."""
    folder = recorded_folder(config)
    return _costs(folder, folder.stat().st_mtime_ns if folder.exists() else 0)


@lru_cache(maxsize=2)
def _costs(folder: Path, changed: int) -> dict[tuple[Any, ...], Cost]:
    seen: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = read_json(path)
        spec = found.get("spec", {})
        for entry in found.get("runs", {}).values():
            p = entry.get("provenance", {})
            if spec.get("epochs") and p.get("search_seconds"):
                key = (spec["method"], spec["model"], spec["data"], bool(p.get("gpu")))
                seen.setdefault(key, []).append((p["search_seconds"] / spec["epochs"], p.get("peak_memory_mb", 0.0)))
    return {k: Cost(statistics.median(t for t, _ in v), max(m for _, m in v)) for k, v in seen.items()}


def cost_key(spec: Spec, gpu: bool) -> tuple[Any, ...]:
    """Name the kind of a run, as `costs` sorts them."""
    return (spec.method, spec.model, spec.data, gpu)


def estimate_seconds(config: Config, cells: list[Cell], gpu: bool = False) -> dict[tuple[str, int], float]:
    """Estimate each cell from what an epoch took in runs of the same method, model and data; else from FLOPs.

    Those of the cells that are done count before recorded runs, which may come from another machine. One step costs 6 FLOPs per
    weight and example; a network outside the LeNet family reuses each weight about 100 times.
    """
    here: dict[tuple[Any, ...], list[float]] = {}
    for c in cells:
        if (got := find(config, c.spec, c.seed)) and c.spec.epochs and bool(got["provenance"].get("gpu")) == gpu:
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
    """
    seconds = sum(estimate_seconds(config, cells, gpu).values())
    need = math.ceil(seconds / 30) + 5
    count = math.ceil(need / longest) + 2
    peaks = [cost.memory_mb for c in cells if (cost := costs(config).get(cost_key(c.spec, False)))]
    memory = 8000 if gpu else max(2000, math.ceil((1.5 * max(peaks) + 1000) / 500) * 500) if peaks else 4000
    return Slices(tuple(min(longest, need * 2**i) for i in range(count)), memory)


def plan(config: Config, cells: list[Cell]) -> str:
    """Tabulate runs, done, missing, time and disk for each experiment."""
    rows: list[list[Any]] = []
    for name in dict.fromkeys(c.experiment for c in cells):
        mine = list({c.key: c for c in cells if c.experiment == name}.values())
        gpu = bool(config.experiment(name).gpu)
        times = estimate_seconds(config, mine, gpu)
        missing = [c for c in mine if not find(config, c.spec, c.seed)]
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


def status(config: Config, cells: list[Cell], given: str = "") -> str:
    """Tabulate every distinct run that is not simply done: its state, how often it was tried, and why.

    The last words of those that failed follow, and the commands that go on with just these; `given` is appended to them, so
    that they see the same configuration.
    """
    counts = dict.fromkeys(("done", "collapsed", "running", "failed", "paused", "missing"), 0)
    rows, words, todo = list[list[Any]](), list[str](), list[Cell]()
    logs = config.results / "logs"
    for c in {c.key: c for c in cells}.values():
        where, found = run_folder(config, c.spec, c.seed), find(config, c.spec, c.seed)
        if found and found["record"]["status"] == "ok":
            counts["done"] += 1
            continue
        why, said = attempts.reason(where, logs)
        if found:
            state, why = "collapsed", found["record"].get("reason", "")
        elif by := lock.held(where):
            state, why = "running", by
        elif why:
            state = "paused" if why == attempts.PAUSED else "failed"
        else:
            state = "missing"
        counts[state] += 1
        rows.append([state, c.experiment, c.arm, c.spec.slug(), c.seed, len(attempts.read(where)), why])
        if state in ("failed", "paused", "missing"):
            todo.append(c)
        if state == "failed" and said:
            words.append(f"{c.spec.slug()} seed {c.seed}, {why}:\n{_last_words(said)}")
    from tabulate import tabulate

    text = [", ".join(f"{n} {state}" for state, n in counts.items())]
    rows.sort(key=lambda r: r[0] == "missing")  # what happened before what did not
    if rows:
        head = ["state", "experiment", "arm", "run", "seed", "tries", "why"]
        text.append(tabulate(rows[:MOST_ROWS], head) + (f"\n... and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""))
    text += words[:10] + _complaints(config, todo)
    if todo:
        text.append("To go on with just these:\n" + "\n".join(f"  {line}" for line in _retry(config, todo, given)))
    return "\n\n".join(text)


def _complaints(config: Config, todo: list[Cell]) -> list[str]:
    """Quote the logs of data sets that could not be had: runs that need them were never started."""
    out = []
    for name in dict.fromkeys(c.spec.data for c in todo):
        log = config.results / "logs" / f"data-{name}.log"
        if log.exists() and not (config.results / "data" / f"{name}.json").exists():
            out.append(f"data set {name}, {log}:\n{_last_words(log.read_text(errors='replace'))}")
    return out


def _last_words(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-LAST_WORDS:])


def _retry(config: Config, todo: list[Cell], given: str) -> list[str]:
    """Write the commands that do these runs and no others, one for each spec, or for the jobs of the workflow that hold them."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for c in todo:
        seeds.setdefault((c.experiment, c.spec.digest()), []).append(c.seed)
    if len(seeds) <= 3:
        return [f"crbg run {e} --where digest={d} --seeds {' '.join(map(str, s))}{given}" for (e, d), s in seeds.items()]
    keys = {(c.experiment, c.key) for c in todo}
    jobs = [j for name in dict.fromkeys(c.experiment for c in todo) for j in config.experiment(name).jobs()]
    mine = [j for j in jobs if any((j.experiment, c.key) in keys for c in j.cells)]
    if len(mine) > 5:
        return [f"crbg run {name}{given}" for name in dict.fromkeys(j.experiment for j in mine)]
    return [f"crbg run {j.experiment} --job {j.name}{given}" for j in mine]
