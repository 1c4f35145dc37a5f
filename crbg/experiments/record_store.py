"""The store of records: fresh ones under results/runs, committed ones under results/recorded.

Recorded runs with the same data set, model and method share a file with one line per run: {"digest", "seed", "spec",
"record", "provenance", "evaluation"}. Only runs evaluated on the test set have "evaluation". This module does not
import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg.errors import CrbgError, few, warn
from crbg.experiments.experiment import Cell, Config, distinct
from crbg.experiments.record import Evaluation, Record, Run
from crbg.experiments.spec import Spec, as_dict, folder
from crbg.storage.atomic import read_json, write_bytes
from crbg.storage.run_lines import RESTORE, Key, Line, lines, put, writing

PARTS = ("record", "provenance", "evaluation")


def recorded_folder(config: Config) -> Path:
    """Return the folder of committed records. A demonstration neither reads nor writes committed records."""
    return Path("results/recorded")


def recorded_file(config: Config, spec: Spec) -> Path:
    """Return the file of the recorded runs that have the data set, model and method of this spec."""
    return _file(recorded_folder(config), spec.data, spec.model, spec.method)


def _file(folder: Path, *names: str) -> Path:
    return folder / ("__".join(re.sub(r"[^\w.-]+", "-", name) for name in names) + ".jsonl")


def run_folder(config: Config, spec: Spec, seed: int) -> Path:
    """Return the folder of a fresh run."""
    return folder(config.results, spec, seed)


def job_folder(config: Config, job: str) -> Path:
    """Return the folder in which a job of the workflow logs its attempts."""
    return config.results / "jobs" / job


def find(config: Config, spec: Spec, seed: int, evaluated: bool = False) -> dict[str, Any] | None:
    """Return {"record", "provenance", "evaluation"?, "origin"} of a run as plain JSON values, or None if it is missing.

    A fresh run takes precedence over a recorded one. Recorded runs are used only with `reuse: recorded`. If
    `evaluated` is true, a run that was not evaluated on the test set counts as missing, unless its search collapsed.

    Raises:
        CrbgError: a file is damaged, or contains a different run from the one that its key names.
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
        refuse_old(recorded_folder(config))
        digest = spec.digest()
        if line := lines(recorded_file(config, spec)).get((digest, seed)):
            entry = _run(line)
            if not evaluated or "evaluation" in entry or entry["record"]["status"] != "ok":
                if entry["record"].get("digest") != digest:
                    raise CrbgError(f"{line.place} contains a record whose spec differs from its key; {RESTORE}")
                return entry | {"origin": "recorded"}
    return None


def find_run(config: Config, spec: Spec, seed: int, evaluated: bool = False) -> Run | None:
    """Return a finished run, or None if it is missing; `find` returns the same run as plain JSON values.

    Raises:
        CrbgError: its files are damaged, or have a format that this version cannot read.
    """
    found = find(config, spec, seed, evaluated)
    return _typed(found, f"the record of {spec.slug()} seed {seed} ({found['origin']})") if found else None


def find_runs(config: Config, cells: Iterable[Cell]) -> dict[Key, Run | None]:
    """Map the key of each cell to its finished run, or to None if it is missing. Each run is read once.

    Raises:
        CrbgError: as `find_run`.
    """
    return {key: find_run(config, c.spec, c.seed) for key, c in distinct(cells).items()}


def runs_in(path: Path) -> Iterator[Run]:
    """Yield the recorded runs of one file."""
    for line in lines(path).values():
        yield _typed(_run(line) | {"origin": "recorded"}, line.place)


def _typed(found: Mapping[str, Any], place: str) -> Run:
    evaluation = Evaluation.from_json(found["evaluation"], f"{place}: evaluation") if "evaluation" in found else None
    return Run(Record.from_json(found["record"], place), found["provenance"], evaluation, found["origin"])


def find_best(config: Config, spec: Spec, seed: int) -> Run | None:
    """Return a finished run, preferably one that was evaluated on the test set; None if it is missing."""
    return find_run(config, spec, seed, evaluated=True) or find_run(config, spec, seed)


def outcome(config: Config, spec: Spec, seed: int) -> tuple[Record, float | None, str]:
    """Return the record of a finished run, its test result if it was evaluated, and the path of its folder or file.

    Raises:
        CrbgError: the run is not finished.
    """
    run = find_best(config, spec, seed)
    if run is None:
        raise CrbgError(f"{spec.slug()} seed {seed} is not done")
    tested = run.evaluation.value() if run.evaluation else None
    fresh = run.origin == "this run"
    return run.record, tested, str(run_folder(config, spec, seed) if fresh else recorded_file(config, spec))


def recorded(config: Config) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield the digest of each spec that has committed records, and its runs by seed."""
    refuse_old(recorded_folder(config))
    for path in _files(recorded_folder(config)):
        runs: dict[str, dict[str, dict[str, Any]]] = {}
        for (digest, seed), line in lines(path).items():
            runs.setdefault(digest, {})[str(seed)] = _run(line)
        yield from runs.items()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _run(line: Line) -> dict[str, Any]:
    """Return the record, the provenance and any evaluation in a line, without the key and the spec."""
    whole = line.parse()
    run = {part: whole[part] for part in PARTS if part in whole}
    if not all(isinstance(run.get(part), dict) for part in PARTS[:2]):
        raise CrbgError(f"{line.place} is not a recorded run: it has no record or no provenance; {RESTORE}")
    return run


def recorded_ticket(config: Config, spec: Spec, seed: int) -> Path:
    """Return the path at which the ticket of a run is committed. Only a few tickets are committed."""
    return recorded_folder(config) / "tickets" / f"{spec.slug()}-seed{seed}.safetensors"


def ticket_path(config: Config, spec: Spec, seed: int) -> Path | None:
    """Return the path of a run's ticket: the fresh one if it exists, else the committed one, else None."""
    places = [run_folder(config, spec, seed) / "ticket.safetensors"]
    if config.reuse == "recorded" and not config.demonstration:
        places.append(recorded_ticket(config, spec, seed))
    return next((p for p in places if p.exists()), None)


def _evaluated(where: Path) -> bool:
    return (where / "evaluation.json").exists() or read_json(where / "record.json").get("status") != "ok"


def record(config: Config, cells: Iterable[Cell]) -> int:
    """Copy finished fresh runs into results/recorded and return their number. Records of other runs are kept.

    A run that was not evaluated on the test set does not replace a different one that was; a warning names it.

    Raises:
        CrbgError: the configuration is a demonstration, or a file is damaged.
    """
    if config.demonstration:
        raise CrbgError("a demonstration is never recorded as evidence; remove the quickstart overlay from --config")
    count, kept = 0, list[str]()
    fresh: dict[Path, dict[Key, Cell]] = {}
    for c in cells:
        if (run_folder(config, c.spec, c.seed) / "record.json").exists():
            fresh.setdefault(recorded_file(config, c.spec), {})[c.key] = c
    if not fresh:
        return 0
    refuse_old(recorded_folder(config))
    with writing(recorded_folder(config)):
        for path, those in fresh.items():
            new: dict[Key, dict[str, Any]] = {}
            for key, c in those.items():
                where = run_folder(config, c.spec, c.seed)
                entry = {"record": read_json(where / "record.json"), "provenance": read_json(where / "provenance.json")}
                before = _run(line) if (line := lines(path).get(key)) else {}
                if (where / "evaluation.json").exists():
                    entry["evaluation"] = read_json(where / "evaluation.json")
                elif "evaluation" in before:
                    if before["record"] != entry["record"]:
                        kept.append(f"{c.spec.slug()} seed {c.seed}")
                        continue
                    entry["evaluation"] = before["evaluation"]
                if entry != before:  # unchanged lines are not rewritten
                    new[key] = {"spec": as_dict(c.spec)} | entry
                count += 1
            put(path, new)
    if kept:
        warn(
            f"the records of {len(kept)} runs are kept, because they were evaluated and the new runs were not: "
            f"{few(kept)}; `crbg evaluate` evaluates the new runs"
        )
    return count


def convert_old_files(config: Config) -> int:
    """Convert files of the older layout (one file per spec) to lines, delete them, and return their number.

    Raises:
        CrbgError: a file cannot be read, or contradicts an existing line for the same run. Nothing is changed then.
    """
    folder = recorded_folder(config)
    if not (old := _old(folder)):
        return 0
    with writing(folder):
        new: dict[Path, dict[Key, dict[str, Any]]] = {}
        for name in old:
            for path, key, entry in _old_runs(folder / name):
                before = new.get(path, {}).get(key) or (_run(line) if (line := lines(path).get(key)) else {})
                if any(before[part] != entry[part] for part in PARTS if part in before and part in entry):
                    raise CrbgError(
                        f"{folder / name} and {path} contradict each other about the run {key[0]}, seed {key[1]}; "
                        "delete one of them"
                    )
                if not entry.keys() - {"spec"} <= before.keys():
                    new.setdefault(path, {})[key] = entry
        for path, runs in new.items():
            put(path, runs)
        for name in old:
            (folder / name).unlink()
    return len(old)


def _old_runs(path: Path) -> Iterator[tuple[Path, Key, dict[str, Any]]]:
    """Yield the new file, the key and the new line of each run in a file of the old layout.

    A file of the old layout contains {"spec", "digest", "runs": {seed: run}}.
    """
    body = read_json(path)
    try:
        spec, digest = body["spec"], str(body["digest"])
        place = _file(path.parent, spec["data"], spec["model"], spec["method"])
        for seed, run in body["runs"].items():
            yield (
                place,
                (digest, int(seed)),
                {"spec": spec} | {part: run[part] for part in PARTS if part in run or part != "evaluation"},
            )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CrbgError(f"{path} is not a file of recorded runs; restore it from version control") from None


def refuse_old(folder: Path) -> None:
    """Raise if there are files of the old layout, since their runs would otherwise be ignored."""
    if old := _old(folder):
        raise CrbgError(
            f"{folder} contains {len(old)} files of an older layout, such as {old[0]}; `crbg record` converts them"
        )


def _old(folder: Path) -> tuple[str, ...]:
    try:
        return _json_files(folder.absolute(), folder.stat().st_mtime_ns)
    except FileNotFoundError:
        return ()


@lru_cache(maxsize=8)
def _json_files(folder: Path, changed: int) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.glob("*.json")))


def robustness_file(config: Config, recorded: bool = False) -> Path:
    """Return the file of `crbg robustness`: the fresh one, or the committed one."""
    return (recorded_folder(config) if recorded else config.results) / "robustness.csv"


def record_robustness(config: Config) -> bool:
    """Copy a fresh file of `crbg robustness` into results/recorded; return whether there is one."""
    fresh = robustness_file(config)
    if not fresh.exists():
        return False
    write_bytes(robustness_file(config, recorded=True), fresh.read_bytes())
    return True


def record_tickets(config: Config, cells: Iterable[Cell]) -> int:
    """Copy the tickets of finished fresh runs into results/recorded/tickets, and return their number.

    A run that trained weights has no ticket file.
    """
    count = 0
    for c in cells:
        where = run_folder(config, c.spec, c.seed)
        if (where / "record.json").exists() and (where / "ticket.safetensors").exists():
            write_bytes(recorded_ticket(config, c.spec, c.seed), (where / "ticket.safetensors").read_bytes())
            count += 1
    return count
