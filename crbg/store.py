"""Where records are found: fresh ones under results/runs, committed ones under results/recorded. Imports no torch.

A recorded file holds all seeds of one spec: {"spec", "digest", "runs": {seed: {"record", "provenance", "evaluation"}}}.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg.config import Cell, Config
from crbg.data import info
from crbg.errors import CrbgError
from crbg.files import read_json, write_bytes, write_json
from crbg.spec import Spec, as_dict, folder

CPU_FLOPS = 2.5e10  # what one core sustains in a gated LeNet step; only used before any run time was recorded
GPU_FLOPS = 5.0e13


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
        shape = info(spec.data).shape
        widths = [math.prod(shape), *map(int, spec.model.split("-")[1:]), info(spec.data).classes]
        return float(sum(a * b for a, b in itertools.pairwise(widths)))
    return 25e6


def estimate_seconds(config: Config, cells: list[Cell], gpu: bool = False) -> dict[tuple[str, int], float]:
    """Estimate each cell: the mean of recorded times of the same method, model and data, scaled by epochs; else from FLOPs.

    One step costs 6 FLOPs per weight and example; a network outside the LeNet family reuses each weight about 100 times.
    """
    known: dict[tuple[str, str, str], list[float]] = {}
    for c in cells:
        if (got := find(config, c.spec, c.seed)) and c.spec.epochs:
            per_epoch = float(got["provenance"].get("search_seconds", 0.0)) / c.spec.epochs
            known.setdefault((c.spec.method, c.spec.model, c.spec.data), []).append(per_epoch)
    out = {}
    for c in cells:
        times = known.get((c.spec.method, c.spec.model, c.spec.data))
        if times:
            out[c.key] = c.spec.epochs * sum(times) / len(times) + 3.0
        else:
            images = c.spec.limit or info(c.spec.data).train
            reuse = 1.0 if c.spec.model.startswith("lenet-") else 100.0
            work = 6.0 * weight_count(c.spec) * reuse * images * c.spec.epochs
            out[c.key] = work / (GPU_FLOPS if gpu else CPU_FLOPS) + 3.0
    return out


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
    """Tabulate the state of every distinct run that is not simply done, after a count of all.

    `given` is appended to the command that runs a missing cell.
    """
    counts, rows = {"done": 0, "collapsed": 0, "unfinished": 0, "missing": 0}, []
    for c in {c.key: c for c in cells}.values():
        where = run_folder(config, c.spec, c.seed)
        found = find(config, c.spec, c.seed)
        if found and found["record"]["status"] == "ok":
            counts["done"] += 1
            continue
        state = "collapsed" if found else "unfinished" if (where / "checkpoint.pt").exists() else "missing"
        counts[state] += 1
        why = found["record"].get("reason", "") if found else ""
        retry = "" if found else f"crbg run {c.experiment} --where digest={c.spec.digest()} --seeds {c.seed}{given}"
        rows.append([state, c.experiment, c.arm, c.spec.slug(), c.seed, why or retry])
    from tabulate import tabulate

    text = ", ".join(f"{n} {state}" for state, n in counts.items())
    return text + ("\n" + tabulate(rows[:40], ["state", "experiment", "arm", "run", "seed", "why, or how to run it"]) if rows else "")
