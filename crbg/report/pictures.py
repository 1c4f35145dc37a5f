"""Additional figures: single tickets, gates under each penalty, objectives, sparsity by layer and by head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from crbg.experiments import record_store
from crbg.experiments.config import Config, Experiment
from crbg.report import anatomy, depth, figures, winners
from crbg.report.page import Picture


def draw_all(config: Config, folder: Path) -> list[Picture]:
    """Draw all additional figures for which records exist."""
    out = [_ticket(a, folder) for a in anatomy.tickets(config)]
    for e in config.experiments.values():
        out += _of_experiment(config, e, folder)
    return out


def _ticket(a: anatomy.Anatomy, folder: Path) -> Picture:
    slug, seed = a.cell.spec.slug(), a.cell.seed
    accuracy = a.record.value()
    caption = f"{a.cell.experiment}, {a.cell.arm}: {slug} seed {seed}"
    if accuracy is not None:
        caption += f", density {a.record.density:.4f}, validation accuracy {accuracy:.2f} %"
    drawn = figures.inside(a, folder / f"ticket_{slug}_seed{seed}")
    return Picture(a.cell.experiment, caption, drawn, ticket=True)


def _of_experiment(config: Config, e: Experiment, folder: Path) -> Iterator[Picture]:
    demonstration, labels = config.demonstration, e.labels
    if e.view == "penalties" and (picked := _one_seed(config, e)):
        drawn = figures.histograms(picked, folder / f"{e.name}_histograms", labels)
        yield Picture(e.name, "Gates under each penalty, one run each", drawn)
    if e.view == "winners" and len(found := winners.measured(config, e)):
        path = folder / f"{e.name}_objectives"
        drawn = figures.by_objective(found, winners.TITLES, path, demonstration, labels)
        yield Picture(e.name, "Value of each objective for tickets before training, lower is better", drawn)
    if any(c.spec.watch_images for c in e.cells) and len(courses := _courses(config, e)):
        drawn = figures.relaxation(courses, folder / f"{e.name}_relaxation", demonstration, labels)
        yield Picture(e.name, "Undecided gates, and the loss of relaxed gates and of the binary ticket", drawn)
    layers = depth.layers(config, e) if e.role != "tune" else []
    if layers:
        drawn = figures.by_depth(layers, folder / f"{e.name}_layers", demonstration, labels)
        yield Picture(e.name, "Sparsity by layer", drawn)
    for f in (f for f in layers if f.heads is not None):
        drawn = figures.by_head(f, folder / f"{e.name}_heads_{f.arm}_{f.asked:g}", demonstration, labels)
        yield Picture(e.name, f"Sparsity by head, {f.arm} at density {f.asked:g}", drawn)


def _one_seed(config: Config, e: Experiment) -> dict[str, Mapping[str, Any]]:
    """Return the gate statistics of one run for each penalty of the first arm: the middle lambda, the first seed."""
    first = [c for c in e.cells if c.arm == e.cells[0].arm and c.seed == e.cells[0].seed]
    weights = sorted({c.spec.resolved().weight for c in first})
    middle = [c for c in first if c.spec.resolved().weight == weights[len(weights) // 2]]
    found = {c.spec.resolved().penalty: record_store.find_run(config, c.spec, c.seed) for c in middle}
    return {penalty: run.record.anatomy for penalty, run in found.items() if run and run.record.anatomy}


def _courses(config: Config, e: Experiment) -> pd.DataFrame:
    """Return one row per recorded epoch of each run that measured its relaxed gates."""
    rows = []
    for c in e.cells:
        run = record_store.find_run(config, c.spec, c.seed)
        for epoch in (run.record.anatomy or {}).get("epochs", []) if run else []:
            if "relaxed" in epoch:
                rows.append({"arm": c.arm, "seed": c.seed, **epoch})
    return pd.DataFrame(rows)
