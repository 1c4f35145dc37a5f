"""All records of a configuration as one tidy table, with one row for each run, part and reading.

A part is a data split (validation or test). A reading is a way to turn gates into multipliers (docs/vocabulary.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from crbg.data.metrics import ACCURACY, METRICS, Metric
from crbg.experiments import record_store
from crbg.experiments.config import Cell, Config, Experiment
from crbg.experiments.estimates import epochs_of, search_seconds
from crbg.experiments.experiment import Key
from crbg.experiments.record import Count, Run
from crbg.experiments.selection import varying
from crbg.report import stats
from crbg.report.winners import TITLES
from crbg.search.roles import CHANGED_ROLES

COLUMNS = [
    "experiment", "role", "arm", "setting", "x", "run", "digest", "version", "data", "model", "init", "asked",
    "seed", "epochs", "status", "origin", "revision", "device", "finished", "part", "reading", "metric", "value",
    "density", "density_missed", "shuffle", "invert", "reinit", "constant", "naive", "fractional", "units", "natural",
    "effective", "silent", "kept", "gated", "bytes", "trained", "changed", "search_seconds", "over", "work", "draw",
    "order", "depth", "by_size", "depth_alone", "by_chance", "tensors", "lossy", "lossy_test", "clean", "plain",
    "again", "steps", *(f"objective_{name}" for name in TITLES),
]  # fmt: skip


def tidy(config: Config) -> pd.DataFrame:
    """Return the table of all runs that have a record.

    Raises:
        CrbgError: a record does not have the format of this version.
    """
    rows: list[dict[str, Any]] = []
    for e in config.experiments.values():
        settings = _settings(e)
        for c in {(c.arm, *c.key): c for c in e.cells}.values():  # two arms may share a run
            if run := record_store.find_best(config, c.spec, c.seed):
                rows += _rows(e, c, run, settings[c.arm, c.spec.digest()])
    return pd.DataFrame(rows, columns=COLUMNS)


def metric_of(rows: pd.DataFrame) -> Metric:
    """Return the metric of an experiment's rows; accuracy if there are no rows."""
    known = rows.metric.dropna() if "metric" in rows else rows.iloc[:0]
    return METRICS[str(known.iloc[0])] if len(known) else ACCURACY


def _settings(e: Experiment) -> dict[tuple[str, str], dict[str, Any]]:
    """Return, for each arm and spec, the fields that differ from the arm's other specs at the same density."""
    arms: dict[tuple[str, float | None], dict[str, Cell]] = {}
    for c in e.cells:
        arms.setdefault((c.arm, c.spec.density), {})[c.spec.digest()] = c
    return {
        (arm, digest): varying(c.spec, [other.spec for other in cells.values()])
        for (arm, _), cells in arms.items()
        for digest, c in cells.items()
    }


def _rows(e: Experiment, cell: Cell, run: Run, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each part and reading of a run; a collapsed run was not evaluated and gives a single row."""
    base = _base(e, cell, run, setting)
    evaluation = run.evaluation if e.role == "main" else None
    clean = evaluation.test_without_lossy.binary.value if evaluation and evaluation.test_without_lossy else None
    out = []
    for part, seen in (("validation", run.record.validation), ("test", evaluation.test if evaluation else None)):
        for name, reading in seen.readings.items() if seen else ():
            row = base | {"part": part, "reading": name, "metric": reading.metric, "value": reading.value}
            row |= {"density": reading.density, "plain": reading.with_search_statistics, "again": reading.recalibrated}
            if part == "test" and name == "binary":
                row["clean"] = clean
            out.append(
                row
                | {"density_missed": bool(seen and seen.density_missed), "naive": seen and seen.naive}
                | (seen.controls() if seen else {})
            )
    return out or [base]


def _base(e: Experiment, cell: Cell, run: Run, setting: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that all rows of a run share."""
    record, provenance, spec = run.record, run.provenance, cell.spec
    anatomy, roles, layers, lossy = (
        record.anatomy or {},
        record.roles or {},
        record.layers or {},
        record.lossy_images or {},
    )
    units = record.units().values()
    base = {
        "experiment": cell.experiment, "role": e.role, "arm": cell.arm, "run": spec.slug(), "digest": record.digest,
        "setting": ", ".join(f"{k.split('.', 1)[-1]} {v}" for k, v in setting.items()),
        "x": getattr(spec.resolved() if e.x.startswith("options.") else spec, e.x.removeprefix("options."), None),
        "version": record.version, "data": spec.data, "model": spec.model, "init": spec.init, "asked": spec.density,
        "seed": cell.seed, "epochs": spec.epochs, "status": record.status, "origin": run.origin,
        "revision": provenance["revision"], "device": provenance["device"],
        "finished": str(provenance.get("finished", ""))[:10], "search_seconds": search_seconds(provenance),
        "draw": record.digests.draw, "order": record.digests.order,
        "fractional": (record.shares or {}).get("all", {}).get("fractional"), "effective": record.effective_density,
        "units": sum(u.kept for u in units) / sum(u.total for u in units) if units else None,
        "natural": (anatomy.get("epochs") or [{}])[-1].get("density"),
        "silent": None if record.silent_units is None else sum(record.silent_units.values()),
        "kept": sum(n.kept for n in layers.values()), "gated": record.gated, "bytes": record.file_bytes,
        "trained": ", ".join(roles.get("trained", [])), "changed": next((r for r in CHANGED_ROLES if r in roles), ""),
        **layer_ranks(layers, record.depth or []), "tensors": len(layers),
        "lossy": sum(lossy.values()), "lossy_test": lossy.get("test", 0),
    }  # fmt: skip
    # GradBalance keeps sum p / (slack k) at 1; `over` is how far above 1 the search ended.
    if "expected" in (last := anatomy.get("search", {})) and (slack := getattr(spec.resolved(), "slack", None)):
        base["over"] = last["expected"] / (slack * spec.density) - 1
    # `steps` counts the steps of the search, without training before or after it.
    # A step costs as much as three forward passes: the forward pass, and the gradients of weights and of activations.
    base["steps"] = record.steps * getattr(spec.resolved(), "search", spec.epochs) / (epochs_of(spec) or 1)
    base |= {f"objective_{k}": v for k, v in (anatomy.get("objectives") or {}).items() if k in TITLES}
    base["work"] = 3 * record.flops["dense"] * record.steps * spec.batch if record.flops else None
    return base


def layer_ranks(layers: Mapping[str, Count], order: Sequence[str]) -> dict[str, float | None]:
    """Return Spearman rank correlations with layer sparsity; None for fewer than four layers or constant ranks.

    `order` names the layers from input to output.

    depth: correlation with the layer's position. by_size: with its number of weights. depth_alone: with its position,
    controlling for its number of weights. by_chance: the value that |depth_alone| stays below in 95 % of random layer
    orders.
    """
    if len(order) < 4:
        return dict.fromkeys(("depth", "by_size", "depth_alone", "by_chance"))
    place, sizes = tuple(map(float, range(len(order)))), tuple(float(layers[n].total) for n in order)
    sparsity = tuple(1 - layers[n].density for n in order)
    alone = stats.partial_rank_correlation(place, sparsity, sizes)
    return {
        "depth": stats.rank_correlation(place, sparsity),
        "by_size": stats.rank_correlation(sizes, sparsity),
        "depth_alone": alone,
        "by_chance": None if alone is None else stats.partial_by_chance(place, sparsity, sizes),
    }


def unfinished(config: Config, rows: pd.DataFrame) -> dict[str, set[Key]]:
    """Return the missing runs by experiment; complete experiments are left out."""
    done = set(zip(rows.digest, rows.seed, strict=True))
    return {e.name: left for e in config.experiments.values() if (left := {c.key for c in e.cells} - done)}


def setting(text: str) -> dict[str, str]:
    """Parse the text of a row's setting, such as "weight 3.0, penalty decision_quad", into values by field."""
    return dict(part.split(" ", 1) for part in text.split(", ") if part)


def by_width(mine: pd.DataFrame) -> dict[str, dict[float, list[float]]]:
    """Return each arm's accuracies, ordered by seed; keys: the number of weights in % of the largest network."""
    full = mine.gated.max()
    return {
        str(arm): {100 * float(str(n)) / full: list(g.sort_values("seed").value) for n, g in group.groupby("gated")}
        for arm, group in mine.groupby("arm", sort=False)
    }


def values(
    rows: pd.DataFrame, experiment: str, arm: str, asked: float | None, part: str = "test", reading: str = "binary"
) -> pd.DataFrame:
    """Select the rows of one arm at one density, one for each seed, ordered by seed."""
    mine = rows[(rows.experiment == experiment) & (rows.arm == arm) & (rows.part == part) & (rows.reading == reading)]
    mine = mine[mine.asked.isna()] if asked is None else mine[(mine.asked - asked).abs() < 1e-9]
    return mine.sort_values("seed")


def specs(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the arm, the setting and the rows of each spec, in the order of the configuration."""
    for (arm, setting, _), group in rows.groupby(["arm", "setting", "digest"], sort=False):
        yield str(arm), str(setting), group
