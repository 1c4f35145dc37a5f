"""Accuracy against sparsity, the cost of the search, a setting, or the width of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from crbg.data.metrics import ACCURACY
from crbg.experiments.config import Experiment
from crbg.report.figures.labels import FIELDS, Labels, label
from crbg.report.figures.style import (
    HOLLOW,
    LEGEND,
    LINES,
    band,
    colour,
    fit,
    legend_below,
    line,
    log_ticks,
    mark_cut,
    marker,
    sparsity_axis,
    ticks,
)
from crbg.report.records_table import by_width, metric_of, setting, specs
from crbg.report.stats import t_interval
from crbg.report.tables import best_part

# An arm more than this many points below the best is only listed in the legend: it would flatten the other curves.
FAR = 8


def curve(mine: pd.DataFrame, published: Sequence[tuple[float, float, str]], labels: Labels) -> None:
    """Draw the metric of binary tickets against sparsity, one line for each arm.

    Arms that are far worse than the best are only in the legend. Naive predictors of the field are dotted lines.
    """
    _, axes = plt.subplots(figsize=(3.4, 2.4))
    metric = metric_of(mine)
    best = mine.groupby("arm", sort=False).value.agg("max" if metric.larger_is_better else "min").map(metric.better)
    far = FAR if metric is ACCURACY else abs(best.max()) / 2
    shown = [a for a in best.index if best[a] >= best.max() - far]
    for i, arm in enumerate(shown):
        _arm(axes, mine[mine.arm == arm], i, label(str(arm), labels))
    for density, accuracy, source in published:
        axes.plot(density, accuracy, "*", color="black", ms=6, mfc="none")
        where: Any = {"xytext": (5, -3), "textcoords": "offset points", "fontsize": 6}
        axes.annotate(f"published, {source}", (density, accuracy), **where)
    for arm in (a for a in best.index if a not in shown):
        level = f"{mine[mine.arm == arm].value.mean():.{metric.digits - 2 if metric is ACCURACY else metric.digits}f}"
        where_to = "below" if metric.larger_is_better else "above"
        axes.plot([], [], " ", label=f"{label(str(arm), labels)}: {level}{metric.unit} ({where_to})")
    sparsity_axis(axes, sorted({float(d) for d in mine.asked.dropna()}))
    axes.invert_xaxis()
    means = [g.value.mean() for _, g in mine[mine.arm.isin(shown)].groupby(["arm", "asked"], dropna=False)]
    # A point far from the others would flatten all curves, so it may lie outside the axes. The table lists it.
    top = max(map(metric.better, means))
    means = [m for m in means if metric.better(m) >= top - (12 if metric is ACCURACY else 2 * far)]
    means += [accuracy for _, accuracy, _ in published]
    _naive(axes, mine, means, far)
    margin = 0.15 * (max(means) - min(means)) + (0.3 if metric is ACCURACY else 0.02 * abs(top))
    highest = 100.5 if metric is ACCURACY else math.inf
    axes.set_ylim(max(0.0, min(means) - 2 * margin), min(highest, max(means) + margin))
    mark_cut(axes)
    axes.set_xlabel("sparsity of the gated weights (%), log scale of density")
    axes.set_ylabel(f"{best_part(mine)} {metric.label}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, **LEGEND)


def _naive(axes: Any, mine: pd.DataFrame, means: list[float], far: float) -> None:
    """Draw naive predictors within `far` of the best mean as dotted lines, and append them to `means`.

    The others are only in the legend.
    """
    metric = metric_of(mine)
    top = max(map(metric.better, means))
    for known in mine.naive.dropna()[:1]:
        for name, value in known.items():
            text = name.replace("_", " ")
            if metric.better(value) < top - far:
                axes.plot([], [], " ", label=f"{text}: {_level(value, mine)}")
                continue
            means.append(value)
            axes.axhline(value, color="0.5", lw=0.8, ls=":")
            look: Any = {"xycoords": ("axes fraction", "data"), "fontsize": 6, "color": "0.35", "va": "bottom"}
            axes.annotate(text, (0.01, value), **look)


def _arm(axes: Any, group: pd.DataFrame, i: int, text: str) -> None:
    """Draw an arm against density, or as a horizontal line if it has no density."""
    if group.asked.isna().all():
        level = t_interval(list(group.value)).mean
        axes.axhline(level, color=colour(i), lw=1, ls="--", label=f"{text}: {_level(level, group)}")
        return
    by = [(d, list(g.value)) for d, g in group.groupby("asked", sort=True)]
    band(axes, [d for d, _ in by], [v for _, v in by], i, text, line(i))


def _level(value: float, group: pd.DataFrame) -> str:
    metric = metric_of(group)
    return f"{value:.1f} %" if metric is ACCURACY else metric.text(value)


def cost(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw the error on a log scale against the cost of the search, in FLOP and in seconds, one line for each arm."""
    figure, panels = plt.subplots(1, 2, figsize=(6.8, 2.4), sharey=True)
    for i, arm in enumerate(mine.arm.unique()):
        by = list(mine[mine.arm == arm].groupby("epochs", sort=True))
        for axes, field, unit in zip(panels, ("work", "search_seconds"), (1e12, 1.0), strict=True):
            x = [g[field].astype(float).mean() / unit for _, g in by]
            text = label(arm, labels) if field == "work" else None
            band(axes, x, [list(100 - g.value) for _, g in by], i, text, LINES[i % len(LINES)])
    for axes, text in zip(panels, ("forward and backward TFLOP of the search", "seconds of the search"), strict=True):
        axes.set_xlabel(text)
        if axes.dataLim.minpos[0] < math.inf:  # old records do not contain the cost of a run
            axes.set_xscale("log")
            log_ticks(axes.xaxis)
    panels[0].set_yscale("log")
    log_ticks(panels[0].yaxis)
    panels[0].set_ylabel(f"{best_part(mine)} error (%)")
    legend_below(figure, 3)


def size(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw accuracy against the size of the file, one line for all arms with the same label."""
    _, axes = plt.subplots(figsize=(3.4, 2.6))
    families: dict[str, list[pd.DataFrame]] = {}
    for arm, _, group in specs(mine):
        families.setdefault(label(arm, labels), []).append(group)
    best = mine.value.max()
    for i, (name, groups) in enumerate(families.items()):
        by = sorted((float(g["bytes"].mean()), list(g.value)) for g in groups)
        band(axes, [x for x, _ in by], [v for _, v in by], i, name, line(i))
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    # A point far below the best would flatten all curves, so it may lie outside the axes. The table lists it.
    fit(axes, [m for g in families.values() for m in (h.value.mean() for h in g) if m >= best - FAR])
    mark_cut(axes)
    axes.set_xlabel("size of the file (bytes)")
    axes.set_ylabel(f"{best_part(mine)} accuracy (%)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, **LEGEND)


def lines(mine: pd.DataFrame, experiment: Experiment, labels: Labels) -> None:
    """Draw accuracy, and sparsity if no target density was set, against the experiment's field `x`."""
    free = bool(mine.asked.isna().all())
    figure, panels = plt.subplots(1 + free, 1, figsize=(3.4, 1.9 * (1 + free)), sharex=True, squeeze=False)
    top, low = panels[0, 0], panels[-1, 0]
    level, mine = mine[mine.x.isna()], mine[mine.x.notna()]
    xs = sorted({float(x) for x in mine.x})
    if xs[0] > 0 and xs[-1] / xs[0] > 20:
        top.set_xscale("log")
    found = _by_setting(mine, experiment.x.removeprefix("options."), labels)
    for i, (name, points) in enumerate(found.items()):
        order = sorted(points)
        band(top, order, [list(points[x].value) for x in order], i, name, line(i))
        if free:
            band(low, order, [list(100 * (1 - points[x].density)) for x in order], i, None, line(i))
    for i, arm in enumerate(map(str, level.arm.unique()), start=len(found)):
        height = level[level.arm == arm].value.mean()
        top.axhline(height, color=colour(i), lw=1, ls="--", label=label(arm, labels))
    if not free:
        _missed(top, found)
    top.set_ylabel(f"{best_part(mine)} accuracy (%)")
    means = [g.value.mean() for points in found.values() for g in points.values()]
    fit(top, means + [g.value.mean() for _, g in level.groupby("arm")])
    if free:
        low.set_ylabel("sparsity (%)")
    low.set_xlabel(FIELDS.get(experiment.x, experiment.x.removeprefix("options.")))
    if len(xs) <= 8:
        ticks(low, xs, [f"{x:g}" for x in xs])
    legend_below(figure, 2, 0.0 if free else -0.08)


def _by_setting(mine: pd.DataFrame, field: str, labels: Labels) -> dict[str, dict[float, pd.DataFrame]]:
    """Group the rows into lines, one for each arm and setting of the other fields; keys: values of `field`."""
    found: dict[str, dict[float, pd.DataFrame]] = {}
    for arm, text, g in specs(mine):
        rest = ", ".join(f"{k} {v}" for k, v in setting(text).items() if k != field)
        name = ", ".join(filter(None, [label(arm, labels), rest.replace("weight", "$\\lambda$")]))
        found.setdefault(name, {})[float(g.x.iloc[0])] = g
    return found


def _missed(axes: Any, found: Mapping[str, Mapping[float, pd.DataFrame]]) -> None:
    """Mark the points of runs that missed their target density, so that their tickets were cut to it."""
    cut = False
    for i, points in enumerate(found.values()):
        for x in (x for x in sorted(points) if points[x].density_missed.astype(bool).any()):
            look: Any = {"color": colour(i), "ms": 5, "mfc": "white", "zorder": 3}
            axes.plot(x, points[x].value.mean(), marker(i), **look)
            cut = True
    if cut:
        axes.plot([], [], "o", color="black", ms=5, mfc="white", lw=0, label="hollow: cut to the target density")


def width(mine: pd.DataFrame, published: Sequence[Mapping[str, float]], labels: Labels) -> None:
    """Draw the error on a log scale, and the gap to the trained dense network, against the number of weights."""
    figure, (top, low) = plt.subplots(2, 1, figsize=(3.4, 3.6), sharex=True)
    level = by_width(mine)
    for i, (arm, found) in enumerate(level.items()):
        order = sorted(found, reverse=True)
        band(top, order, [[100 - v for v in found[x]] for x in order], i, label(arm, labels))
    if published:
        points = [p["weights"] for p in published], [100 - p["accuracy"] for p in published]
        top.plot(*points, "*", color="black", ms=5, mfc="none", label="thesis (digitised figure)")
    dense = level.get("dense_trained", {})
    for i, arm in enumerate(level):
        shared = sorted(set(level[arm]) & set(dense), reverse=True)
        if arm != "dense_trained" and shared:
            gaps = [[d - v for d, v in zip(dense[x], level[arm][x], strict=False)] for x in shared]
            band(low, shared, gaps, i, None)
    top.set_xscale("log")
    top.invert_xaxis()
    top.set_yscale("log")
    log_ticks(top.yaxis)
    top.set_ylabel(f"{best_part(mine)} error (%)")
    low.set_ylabel("dense, trained minus ticket\n(points)")
    low.set_xlabel("weights of the network before gating (% of LeNet-300-100)")
    ticks(low, [100, 30, 10, 3, 1], ["100", "30", "10", "3", "1"])
    legend_below(figure, 2, 0.02)


def winners(mine: pd.DataFrame, published: Mapping[str, Mapping[float, float]], labels: Labels) -> None:
    """Draw the accuracy of trained tickets against sparsity and seconds per ticket; hollow markers: published."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.6), sharey=True)
    shown, arms = sorted({float(d) for d in mine.asked if d < 1}), list(mine.arm.unique())
    # Horizontal offset between arms, so that their intervals do not overlap.
    apart = (shown[-1] / shown[0]) ** 0.008 if len(shown) > 1 else 1.01
    for i, arm in enumerate(arms):
        group, text, theirs = mine[mine.arm == arm], label(arm, labels), published.get(arm, {})
        if (group.asked >= 1).all():
            known = f" (published {theirs[1.0]} %)" if theirs.get(1.0) else ""
            text = f"{text}: {group.value.mean():.1f} %{known}"
            left.axhline(group.value.mean(), color="black", lw=0.7, ls=":", label=text)
            continue
        by = [(float(d), g) for d, g in group.groupby("asked", sort=True)]
        accuracies = [list(g.value) for _, g in by]
        band(left, [d * apart ** (len(arms) / 2 - i) for d, _ in by], accuracies, i, text, line(i))
        band(right, [g.search_seconds.astype(float).mean() for _, g in by], accuracies, i, None, line(i))
        if theirs:
            left.plot(*zip(*sorted(theirs.items()), strict=True), marker(i), color=colour(i), ms=5, **HOLLOW)
    sparsity_axis(left, shown, ".4g")
    left.invert_xaxis()
    left.set_xlabel("sparsity (%), log scale of density")
    left.set_ylabel(f"{best_part(mine)} accuracy (%)")
    right.set_xscale("log")
    log_ticks(right.xaxis)
    right.set_xlabel("seconds per ticket, including its training")
    # The accuracy of random masks may be far below the range of the axis. The table lists it.
    fit(left, [g.value.mean() for (arm, _), g in mine.groupby(["arm", "asked"]) if arm != "random"])
    if published:
        text = "hollow: published or public code, other settings"
        left.plot([], [], "o", color="black", ms=5, label=text, **HOLLOW)
    legend_below(figure, 4)
