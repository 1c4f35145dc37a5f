"""Many arms side by side: as dots, or with a panel for each sparsity, initial distribution or objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from crbg.report.figures.curves import FAR
from crbg.report.figures.labels import FIELDS, Labels, label
from crbg.report.figures.style import (
    MARKERS,
    band,
    colour,
    dot,
    figure,
    fit,
    legend_below,
    legend_outside,
    line,
    sparsity_axis,
    ticks,
)
from crbg.report.records_table import setting, specs
from crbg.report.stats import t_interval
from crbg.report.tables import best_part


def dots(mine: pd.DataFrame, published: Mapping[str, Mapping[float, float]], labels: Labels) -> None:
    """Draw one row for each arm and setting: accuracy with its interval; published values are hollow markers."""
    groups = list(specs(mine))[::-1]
    _, axes = plt.subplots(figsize=(3.4, 0.35 + 0.19 * len(groups)))
    order = {arm: i for i, arm in enumerate(mine.arm.unique())}
    found = [t_interval(list(g.accuracy)) for _, _, g in groups]
    lowest = max(i.mean for i in found) - 60
    for y, ((arm, _, g), i) in enumerate(zip(groups, found, strict=True)):
        mark = MARKERS[order[arm] % 7]
        dot(axes, y, i, lowest, order[arm], mark)
        if (theirs := published.get(arm, {}).get(g.asked.iloc[0])) is not None:
            axes.plot(theirs, y, mark, color=colour(order[arm]), ms=5, mfc="none")
    axes.set_yticks(range(len(groups)), [_name(label(arm, labels), text, g) for arm, text, g in groups], fontsize=6)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_xlabel(f"{best_part(mine)} accuracy (%)" + ("; hollow: published" if published else ""))


def _name(arm: str, text: str, g: pd.DataFrame) -> str:
    """Return the name of a row: arm, setting, and the fraction of units or weights removed."""
    closed, sparse = 100 * (1 - g.units.astype(float).mean()), 100 * (1 - g.density.mean())
    much = f"{closed:.0f} % of units closed" if g.units.notna().all() else f"{sparse:.1f} % sparse" if sparse else ""
    return ", ".join(filter(None, [arm, text, much]))


def methods(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw one panel for each density and one row for each arm; arms without a density are listed below the panels."""
    rivals, levels = mine[mine.asked.notna()], mine[mine.asked.isna()].groupby("arm", sort=False).accuracy.mean()
    rows, densities = list(rivals.arm.unique())[::-1], sorted(rivals.asked.unique(), reverse=True)
    size: Any = (6.8, 0.7 + 0.15 * len(rows))
    page, panels = plt.subplots(1, len(densities), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, asked in zip(panels[0], densities, strict=True):
        found = {a: t_interval(list(g.accuracy)) for a, g in rivals[rivals.asked == asked].groupby("arm")}
        lowest = max(i.mean for i in found.values()) - FAR
        for arm, i in found.items():
            dot(axes, rows.index(arm), i, lowest, 0, "o")
        near = [m for m in (*(i.mean for i in found.values()), *levels) if m >= lowest]
        margin = 0.15 * (max(near) - min(near)) + 0.3
        axes.set_xlim(min(near) - 2 * margin, min(100.5, max(near) + margin))
        for level in levels[levels >= lowest]:
            axes.axvline(level, color=colour(1), lw=1, ls="--")
        axes.set_title(f"{100 * (1 - asked):g} % sparse")
    panels[0, 0].set_yticks(range(len(rows)), [label(a, labels) for a in rows])
    panels[0, 0].set_ylim(-0.6, len(rows) - 0.4)
    named = ", ".join(f"{label(str(a), labels)} {v:.1f}" for a, v in levels.items())
    below = f"; dashed line, or left of the panel: {named}" if named else ""
    page.supxlabel(f"{best_part(mine)} accuracy (%){below}", fontsize=7)


def penalties(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw accuracy and sparsity against lambda: one column for each initial distribution, one line per penalty."""
    arms, said = list(mine.arm.unique()), mine.setting.map(setting)
    size: Any = {"figsize": (1.75 * len(arms) + 0.3, 3.3), "sharex": True, "sharey": "row", "squeeze": False}
    page, panels = plt.subplots(2, len(arms), **size)
    kinds = said.map(lambda s: s.get("penalty", "induce_sparse"))
    found = mine.assign(penalty=kinds, weight=said.map(lambda s: float(s.get("weight", "nan"))))
    for (top, low), arm in zip(panels.T, arms, strict=True):
        for i, penalty in enumerate(found.penalty.unique()):
            by = list(found[(found.arm == arm) & (found.penalty == penalty)].groupby("weight", sort=True))
            weights, text = [w for w, _ in by], label(penalty, labels) if arm == arms[0] else None
            band(top, weights, [list(g.accuracy) for _, g in by], i, text)
            band(low, weights, [list(100 * (1 - g.density)) for _, g in by], i, None)
        top.set_title(arm.replace("_", " "))
        low.set_xscale("log")
        ticks(low, sorted(found.weight.unique()), [f"{w:g}" for w in sorted(found.weight.unique())])
    fit(panels[0, 0], [g.accuracy.mean() for _, g in found.groupby(["arm", "penalty", "weight"])])
    panels[0, 0].set_ylabel(f"{best_part(mine)} accuracy (%)")
    panels[1, 0].set_ylabel("sparsity (%)")
    page.supxlabel(FIELDS["options.weight"], fontsize=8)
    legend_below(page, 2, 0.0)


def by_objective(
    found: pd.DataFrame, titles: Mapping[str, str], path: Path, demonstration: bool, labels: Labels
) -> Path:
    """Draw the value of each objective for tickets before training: one panel for each, one line for each arm."""
    arms, densities = list(found.arm.unique()), sorted(found.density.unique(), reverse=True)
    columns = math.ceil(len(titles) / 2)
    size: Any = {"figsize": (6.8, 3.4 + 0.1 * len(arms)), "sharex": True, "squeeze": False, "layout": "constrained"}
    with figure(path, demonstration):
        page, panels = plt.subplots(2, columns, **size)
        for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
            _objective(axes, found, name, {arm: label(arm, labels) for arm in arms})
            axes.set_title(title)
            sparsity_axis(axes, densities, ".4g")
        panels[0, 0].invert_xaxis()
        for axes in panels.flat[len(titles) :]:
            axes.axis("off")
        for axes in panels.flat[columns : len(titles)]:
            axes.set_xlabel("sparsity (%)")
        legend_outside(page, 4, *panels[0, 0].get_legend_handles_labels())
    return path


def _objective(axes: Any, found: pd.DataFrame, name: str, arms: Mapping[str, str]) -> None:
    """Draw one objective for all arms; values that are not finite or not measured are omitted."""
    known = found[np.isfinite(found[name].astype(float))]
    for i, (arm, text) in enumerate(arms.items()):
        mine = known[known.arm == arm]
        by = [(float(str(d)), list(g[name].astype(float))) for d, g in mine.groupby("density", sort=True)]
        band(axes, [d for d, _ in by], [v for _, v in by], i, text, line(i))
    means = [g[name].astype(float).mean() for _, g in known.groupby(["arm", "density"])]
    if means and name != "gradnorm" and max(means) > 20 * max(min(means), 1e-9):
        axes.set_yscale("log")
