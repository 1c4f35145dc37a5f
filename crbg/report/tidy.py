"""All records of a configuration as one tidy table: a row for each run, part and reading."""

from __future__ import annotations

from typing import Any

import pandas as pd

from crbg import store
from crbg.config import Config
from crbg.errors import CrbgError

COLUMNS = [
    "experiment", "role", "arm", "run", "digest", "data", "model", "init", "asked", "seed", "status", "origin", "revision", "device",
    "part", "reading", "accuracy", "density", "density_missed", "shuffle", "invert", "reinit", "search_seconds", "draw", "order",
]  # fmt: skip


def tidy(config: Config) -> pd.DataFrame:
    """Collect every run that is there.

    Raises:
        CrbgError: a record is not what this version writes, or records of two versions of a method would be mixed.
    """
    rows: list[dict[str, Any]] = []
    for e in config.experiments.values():
        for c in {c.key: c for c in e.cells}.values():
            found = store.find(config, c.spec, c.seed, evaluated=True) or store.find(config, c.spec, c.seed)
            if found is None:
                continue
            try:
                rows += _rows(e.role, c, found)
            except (KeyError, TypeError, AttributeError) as error:
                raise CrbgError(
                    f"the record of {c.spec.slug()} seed {c.seed} ({found['origin']}) lacks {error}; delete it and run the cell again"
                ) from None
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(role: str, cell: Any, found: dict[str, Any]) -> list[dict[str, Any]]:
    record, provenance, spec = found["record"], found["provenance"], cell.spec
    base = {
        "experiment": cell.experiment, "role": role, "arm": cell.arm, "run": spec.slug(), "digest": record["digest"],
        "data": spec.data, "model": spec.model, "init": spec.init, "asked": spec.density, "seed": cell.seed,
        "status": record["status"], "origin": found["origin"], "revision": provenance["revision"], "device": provenance["device"],
        "search_seconds": provenance["search_seconds"], "draw": record["digests"]["draw"], "order": record["digests"]["order"],
    }  # fmt: skip
    parts = {"validation": record.get("validation"), "test": found.get("evaluation", {}).get("test")}
    out = []
    for part, values in parts.items():
        if values is None:
            continue
        controls = {k: v["accuracy"] for k, v in values.get("sanity", {}).items()}
        missed = values.get("density_missed", False)
        for reading, v in values["readings"].items():
            row = base | {"part": part, "reading": reading, "accuracy": v["accuracy"], "density": v["density"]}
            out.append(row | {"density_missed": missed, **controls})
    return out or [base]  # a collapsed run has no reading, but it counts as done


def unfinished(config: Config) -> dict[str, int]:
    """Count the missing runs of each experiment that has any."""
    counts = {}
    for e in config.experiments.values():
        cells = {c.key: c for c in e.cells}.values()
        count = sum(store.find(config, c.spec, c.seed) is None for c in cells)
        if count:
            counts[e.name] = count
    return counts


def values(rows: pd.DataFrame, experiment: str, arm: str, asked: float | None, part: str = "test", reading: str = "binary") -> pd.DataFrame:
    """Pick the rows of one arm at one density, one for each seed, in the order of the seeds."""
    mine = rows[(rows.experiment == experiment) & (rows.arm == arm) & (rows.part == part) & (rows.reading == reading)]
    mine = mine[mine.asked.isna()] if asked is None else mine[(mine.asked - asked).abs() < 1e-9]
    return mine.sort_values("seed")
