"""Many arms side by side: as dots, or with a panel for each sparsity, initial distribution or objective."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from crbg.data.metrics import ACCURACY
from crbg.report.figures.curves import FAR
from crbg.report.figures.labels import FIELDS, Labels, label, named
from crbg.report.figures.style import (
    LINES,
    MARKERS,
    band,
    colour,
    dot,
    figure,
    fit,
    legend_below,
    legend_outside,
    log_ticks,
    mark_cut,
    ticks,
)
from crbg.report.records_table import metric_of, setting, specs
from crbg.report.tables import best_part


def dots(mine: pd.DataFrame, published: Mapping[str, Mapping[float, float]], labels: Labels) -> None:
    """Draw one row for each arm and setting: the metric with its interval; published values are hollow markers."""
    groups = list(specs(mine))[::-1]
    _, axes = plt.subplots(figsize=(3.4, 0.35 + 0.19 * len(groups)))
    order = {arm: i for i, arm in enumerate(mine.arm.unique())}
    in_percent = metric_of(mine) is ACCURACY
    lowest = max(g.value.mean() for _, _, g in groups) - 60 if in_percent else -math.inf
    for y, (arm, _, g) in enumerate(groups):
        mark = MARKERS[order[arm] % 7]
        dot(axes, y, list(g.value), lowest, order[arm], mark)
        if (theirs := published.get(arm, {}).get(g.asked.iloc[0])) is not None:
            axes.plot(theirs, y, mark, color=colour(order[arm]), ms=5, mfc="none")
    axes.set_yticks(range(len(groups)), [_name(label(arm, labels), text, g) for arm, text, g in groups], fontsize=6)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    if in_percent:
        axes.set_xlim(right=min(100.5, axes.get_xlim()[1]))
    mark_cut(axes, "x")
    axes.set_xlabel(_axis(mine, bool(published)))


def _axis(mine: pd.DataFrame, published: bool) -> str:
    """Return the label of the axis of the metric."""
    one = ", one seed" if mine.groupby("digest").seed.nunique().max() == 1 else ""
    return f"{best_part(mine)} {metric_of(mine).label}{one}" + ("; hollow: published" if published else "")


def _name(arm: str, text: str, g: pd.DataFrame) -> str:
    """Return the name of a row: arm, setting, and the fraction of units or weights removed."""
    closed, sparse = 100 * (1 - g.units.astype(float).mean()), round(100 * (1 - g.density.mean()), 1)
    much = f"{closed:.0f} % of units closed" if g.units.notna().all() else f"{sparse:g} % sparse" if sparse else ""
    return ", ".join(filter(None, [arm, named(text), much]))


def methods(
    mine: pd.DataFrame, published: Mapping[str, Mapping[float, float]], labels: Labels, seconds: bool = False
) -> None:
    """Draw one panel for each density and one row for each arm; arms without a density are named below the panels.

    Args:
        mine: headline rows of the experiment.
        published: published accuracies by arm and density, drawn as hollow markers.
        labels: names of arms.
        seconds: add a panel with the seconds for each ticket.
    """
    flat = mine.asked.isna() | (mine.asked >= 1)
    rivals, levels = mine[~flat], mine[flat].groupby("arm", sort=False).value.mean()
    rows, densities = list(rivals.arm.unique())[::-1], sorted(rivals.asked.unique(), reverse=True)
    size: Any = {"figsize": (6.8, 0.7 + 0.15 * len(rows)), "sharey": True, "squeeze": False, "layout": "constrained"}
    page, panels = plt.subplots(1, len(densities) + seconds, **size)
    for axes, asked in zip(panels[0], densities, strict=False):
        _at_density(axes, rivals[rivals.asked == asked], rows, levels, published)
    if seconds:
        for (arm, asked), g in rivals.groupby(["arm", "asked"]):
            look: Any = {"color": colour(densities.index(asked)), "mfc": "none", "ms": 3.5}
            panels[0, -1].plot(
                g.search_seconds.astype(float).mean(), rows.index(arm), MARKERS[densities.index(asked)], **look
            )
        panels[0, -1].set_xscale("log")
        log_ticks(panels[0, -1].xaxis)
        panels[0, -1].set_title("seconds per ticket")
    panels[0, 0].set_yticks(range(len(rows)), [label(a, labels) for a in rows])
    panels[0, 0].set_ylim(-0.6, len(rows) - 0.4)
    listed = ", ".join(f"{label(str(a), labels)} {v:.1f}" for a, v in levels.items())
    below = f"; dashed line, or left of the panel: {listed}" if listed else ""
    page.supxlabel(f"{_axis(mine, bool(published))}{below}", fontsize=7)


def _at_density(
    axes: Any,
    mine: pd.DataFrame,
    rows: list[Any],
    levels: pd.Series[Any],
    published: Mapping[str, Mapping[float, float]],
) -> None:
    """Draw the arms at one density; accuracies far below the median are printed at the left edge."""
    found, asked = {str(a): list(g.value) for a, g in mine.groupby("arm")}, float(mine.asked.iloc[0])
    means = {arm: sum(values) / len(values) for arm, values in found.items()}
    lowest = statistics.median(means.values()) - FAR
    theirs = {arm: v for arm in found if (v := published.get(arm, {}).get(asked)) is not None and v >= lowest}
    near = [m for m in (*means.values(), *levels, *theirs.values()) if m >= lowest]
    margin = 0.15 * (max(near) - min(near)) + 0.3
    for arm, values in found.items():
        dot(axes, rows.index(arm), values, lowest, 0, "o")
    for arm, value in theirs.items():
        axes.plot(value, rows.index(arm), "o", color=colour(0), ms=5, mfc="none")
    axes.set_xlim(min(near) - 2 * margin, min(100.5, max(near) + margin))
    mark_cut(axes, "x")
    for level in levels[levels >= lowest]:
        axes.axvline(level, color=colour(1), lw=1, ls="--")
    axes.set_title(f"{100 * (1 - asked):.4g} % sparse")


def controls(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw the accuracy that tickets lose under each control, paired by seed: a panel for each density."""
    kinds = mine.setting.map(setting).map(lambda s: s.get("control", "none"))
    found = mine.assign(control=kinds, asked=mine.asked.fillna(1.0))
    names = [str(c) for c in found.control.unique() if c != "none"]
    arms, densities = list(found.arm.unique())[::-1], sorted(found.asked.unique(), reverse=True)
    size: Any = {"figsize": (3.4 * len(densities), 0.9 + 0.3 * len(arms)), "sharey": True, "squeeze": False}
    page, panels = plt.subplots(1, len(densities), **size)
    for axes, asked in zip(panels[0], densities, strict=True):
        at = found[found.asked == asked].pivot_table("value", ["arm", "seed"], "control")
        for i, control in enumerate(n for n in names if n in at and "none" in at):
            lost = (at["none"] - at[control]).dropna().groupby("arm")
            for arm, values in lost:
                text = f"{named('control')} {control}".strip() if arm == arms[-1] and asked == densities[0] else None
                axes.plot([], [], MARKERS[i], color=colour(i), ms=3.5, label=text)
                dot(axes, arms.index(arm) + 0.25 * ((len(names) - 1) / 2 - i), list(values), -100.0, i, MARKERS[i])
        axes.axvline(0, color="black", lw=0.7)
        axes.set_title(f"{100 * (1 - asked):.4g} % sparse")
        axes.set_xlabel(f"points of {best_part(mine)} accuracy lost")
    panels[0, 0].set_yticks(range(len(arms)), [label(a, labels) for a in arms])
    panels[0, 0].set_ylim(-0.6, len(arms) - 0.4)
    legend_below(page, len(names), -0.02 if len(arms) > 3 else -0.15)


def penalties(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw accuracy and sparsity against lambda: one column for each initial distribution, one line per penalty."""
    arms, said = list(mine.arm.unique()), mine.setting.map(setting)
    size: Any = {"figsize": (1.75 * len(arms) + 0.3, 3.3), "sharex": True, "sharey": "row", "squeeze": False}
    page, panels = plt.subplots(2, len(arms), **size)
    kinds = said.map(lambda s: s.get("penalty", "induce_sparse"))
    found = mine.assign(penalty=kinds, weight=said.map(lambda s: float(s.get("weight", "nan"))))
    names = list(found.penalty.unique())
    for (top, low), arm in zip(panels.T, arms, strict=True):
        for i, penalty in enumerate(names):
            by = list(found[(found.arm == arm) & (found.penalty == penalty)].groupby("weight", sort=True))
            # A horizontal offset keeps curves apart that coincide.
            weights = [float(str(w)) * 1.07 ** (i - (len(names) - 1) / 2) for w, _ in by]
            text, style = label(penalty, labels) if arm == arms[0] else None, LINES[i % len(LINES)]
            band(top, weights, [list(g.value) for _, g in by], i, text, style)
            band(low, weights, [list(100 * (1 - g.density)) for _, g in by], i, None, style)
        top.set_title(label(arm, labels))
        low.set_xscale("log")
        ticks(low, sorted(found.weight.unique()), [f"{w:g}" for w in sorted(found.weight.unique())])
    means = [g.value.mean() for _, g in found.groupby(["arm", "penalty", "weight"])]
    for top in panels[0]:
        fit(top, means)
    panels[0, 0].set_ylabel(f"{best_part(mine)} accuracy (%)")
    panels[1, 0].set_ylabel("sparsity (%)")
    page.supxlabel(FIELDS["options.weight"], fontsize=8)
    legend_below(page, 2, 0.0)


def by_objective(
    found: pd.DataFrame, titles: Mapping[str, str], path: Path, demonstration: bool, labels: Labels
) -> Path:
    """Draw the value of each objective for tickets before training: a panel for each, a row for each arm."""
    arms, densities = list(found.arm.unique())[::-1], sorted(found.density.unique(), reverse=True)
    columns = math.ceil(len(titles) / 2)
    size: Any = {"figsize": (6.8, 1.2 + 0.26 * len(arms)), "sharey": True, "squeeze": False, "layout": "constrained"}
    with figure(path, demonstration):
        page, panels = plt.subplots(2, columns, **size)
        for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
            _objective(axes, found, name, arms, densities)
            axes.set_title(title)
        for axes in panels.flat[len(titles) :]:
            axes.axis("off")
        for axes in panels[:, 0]:
            axes.set_yticks(range(len(arms)), [label(str(a), labels) for a in arms], fontsize=6)
            axes.set_ylim(-0.6, len(arms) - 0.4)
        handles = panels[0, 0].get_legend_handles_labels()
        legend_outside(page, len(densities), *handles, title="value before the tickets are trained; lower is better")
    return path


def _objective(axes: Any, found: pd.DataFrame, name: str, arms: list[Any], densities: list[float]) -> None:
    """Draw one objective for all arms; values that are not finite or not measured are omitted."""
    known = found[np.isfinite(found[name].astype(float))]
    for i, density in enumerate(densities):
        axes.plot([], [], MARKERS[i], color=colour(i), ms=3.5, label=f"{100 * (1 - density):.4g} % sparse")
        for arm, g in known[known.density == density].groupby("arm", sort=False):
            dot(axes, arms.index(arm), list(g[name].astype(float)), -math.inf, i, MARKERS[i])
    values = known[name].astype(float)
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_xscale("log")
        log_ticks(axes.xaxis, (1,))
