"""Where records are found: fresh ones under results/runs, committed ones under results/recorded. Imports no torch.

A recorded file holds all seeds of one spec: {"spec", "digest", "runs": {seed: {"record", "provenance", "evaluation"}}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg.errors import CrbgError
from crbg.experiments.config import Cell, Config
from crbg.experiments.spec import Spec, as_dict, folder
from crbg.storage.atomic import read_json, write_bytes, write_json


def recorded_folder(config: Config) -> Path:
    """Name the folder of committed records; a demonstration has none."""
    return Path("results/recorded")


def run_folder(config: Config, spec: Spec, seed: int) -> Path:
    """Name the folder of a fresh run."""
    return folder(config.results, spec, seed)


def job_folder(config: Config, job: str) -> Path:
    """Name the folder where a job of the workflow notes what becomes of it."""
    return config.results / "jobs" / job


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


def outcome(config: Config, spec: Spec, seed: int) -> tuple[dict[str, Any], float | None, str]:
    """Return the record of a finished run, its binary test accuracy where it was evaluated, and the path of what holds it."""
    found = find(config, spec, seed, evaluated=True) or find(config, spec, seed)
    if found is None:
        raise CrbgError(f"{spec.slug()} seed {seed} is not done")
    tested = found.get("evaluation", {}).get("test", {}).get("readings", {}).get("binary", {}).get("accuracy")
    fresh = found["origin"] == "this run"
    return found["record"], tested, str(run_folder(config, spec, seed) if fresh else recorded_folder(config) / f"{spec.slug()}.json")


def recorded(config: Config) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Walk through the committed records: the digest of each spec, and its runs by seed."""
    for path in sorted(recorded_folder(config).glob("*.json")):
        entry = read_json(path)
        try:
            yield str(entry["digest"]), dict(entry["runs"])
        except (KeyError, TypeError, ValueError):
            raise CrbgError(f"{path} is not a file of recorded runs; restore it from version control") from None


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
        before = dict(read_json(path)["runs"]) if path.exists() else {}
        runs = dict(before)
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
        if runs != before:  # a file that would say nothing new stays as it is
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
