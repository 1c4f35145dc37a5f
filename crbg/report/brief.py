"""A summary of the runs in a few lines, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from crbg.experiments.config import Config, Experiment
from crbg.report import tables
from crbg.report.chapters import key, label
from crbg.report.records_table import metric_of, tidy


def brief(config: Config, experiments: Iterable[Experiment]) -> str:
    """Summarise in a few lines what was run, the best ticket of each method, and which files to open."""
    experiments = list(experiments)
    rows = tidy(config)
    rows = rows[rows.experiment.isin([e.name for e in experiments])]
    known = [e for e in experiments if e.role != "tune" and (rows.experiment == e.name).any()]
    out = [_runs(rows)]
    out += _best(key(e for e in known if e.view != "winners"), rows, "untrained weights", 3)
    out += _best(key(e for e in known if e.view == "winners"), rows, "weights trained under the mask", 2)
    if config.demonstration:
        out.append("DEMONSTRATION on 1 797 toy digits: it shows that the pipeline works, not that any claim is true.")
    whole, shown = config.paper / "report.html", key(known)
    out.append(f"Open {whole} (everything on one page)." if whole.exists() else f"`crbg report` writes {whole}.")
    picture = config.paper / "figures" / f"{shown.name}.png" if shown else None
    if picture and picture.exists():
        out.append(f"The picture: {picture}")
    return "\n".join(out)


def _runs(rows: pd.DataFrame) -> str:
    """Count the runs by experiment, or those of more than twelve experiments in total, each of them once."""
    counts = rows.drop_duplicates(["experiment", "digest", "seed"]).experiment.value_counts(sort=False)
    if len(counts) > 12:
        finished = len(rows.drop_duplicates(["digest", "seed"]))
        return f"Runs: {finished} finished (done or collapsed) in {len(counts)} experiments."
    return f"Runs: {', '.join(f'{n} of {e}' for e, n in counts.items()) or 'none'}."


def _best(e: Experiment | None, rows: pd.DataFrame, kind: str, lines: int) -> list[str]:
    """List the best ticket of each method of an experiment, in at most `lines` lines."""
    best = tables.best_tickets(rows, e.name) if e else pd.DataFrame()
    if e is None or best.empty:
        return []
    part, metric = tables.best_part(mine := rows[rows.experiment == e.name]), metric_of(mine)
    at = f"at {100 * (1 - best.density[0]):g} % sparsity, {kind}, {part} {metric.title}"
    cells = [
        f"{label(arm, e.labels)} {value:.{metric.digits - 1}f}{metric.unit}"
        for arm, value in zip(best.arm, best.value, strict=True)
    ]
    step = max(3, math.ceil(len(cells) / lines))
    rest = ("   ".join(f"{t:<34s}" for t in cells[i : i + step]) for i in range(0, len(cells), step))
    return [f"{e.name}, best ticket of each method {at}:", *(f"  {line}".rstrip() for line in rest)]
