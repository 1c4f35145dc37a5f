"""Figures as PDF, PNG and SVG, one style, colours that colour-blind readers can tell apart (Okabe & Ito)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, StrMethodFormatter

mpl.use("Agg")
import matplotlib.pyplot as plt

from crbg.experiments.config import Experiment
from crbg.report.anatomy import Anatomy
from crbg.report.depth import Layers
from crbg.report.records_table import by_width, setting, specs
from crbg.report.stats import t_interval
from crbg.report.tables import best_part, headline

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 6.5, "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "figure.dpi": 200, "savefig.bbox": "tight", "axes.grid": True, "grid.alpha": 0.3, "pdf.fonttype": 42,
    "axes.titlesize": 8, "svg.hashsalt": "crbg",
}  # fmt: skip

FIELDS = {
    "options.mu0": "initial gate $\\mu_0$", "scale": "range $\\alpha$ of the initial weights",
    "options.noise": "noise $\\sigma$ of the gates", "options.weight": "penalty weight $\\lambda$",
}  # fmt: skip

Published = list[tuple[float, float, str]]
Labels = Mapping[str, str]  # names of arms and penalties, from the configuration


def draw(
    rows: pd.DataFrame, experiment: Experiment, path: Path, demonstration: bool, published: Mapping[str, Any]
) -> Path:
    """Draw an experiment as its `view` says.

    `published`: points (density, accuracy, source) and the digitised width sweep.
    """
    mine, labels = headline(rows, experiment.name), experiment.labels
    with _figure(path, demonstration):
        match experiment.view:
            case "dots":
                _dots(mine, published.get("winners", {}).get(experiment.name, {}), labels)
            case "lines":
                _lines(mine, experiment)
            case "width":
                _width(mine, published.get("width", []), labels)
            case "penalties":
                _penalties(mine, labels)
            case "cost":
                _cost(mine, labels)
            case "winners":
                _winners(mine, published.get("winners", {}).get(experiment.name, {}), labels)
            case "methods":
                _methods(mine, labels)
            case _:
                _curve(mine, published.get("points", []), labels)
    return path


@contextmanager
def _figure(path: Path, demonstration: bool = False) -> Iterator[None]:
    """Collect what is drawn in the present figure and write it three times, without dates: the same records give the same bytes."""
    with mpl.rc_context(STYLE):
        yield
        figure = plt.gcf()
        if demonstration:
            figure.suptitle("demonstration on digits, not evidence", fontsize=7)
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, blank in ((".pdf", "CreationDate"), (".png", "Software"), (".svg", "Date")):
            figure.savefig(path.with_name(path.name + suffix), metadata={blank: None})
        plt.close(figure)


def _marker(i: int) -> str:
    """Choose a marker that goes with the i-th line's colour and with no other line of that colour."""
    return MARKERS[(i + i // 7) % 7]


def _band(
    axes: Any, x: Sequence[Any], groups: Sequence[Sequence[float]], i: int, label: str | None, line: str = "-"
) -> None:
    """Draw means with 95 % intervals along x."""
    points = [t_interval(list(g)) for g in groups]
    means, bars = [p.mean for p in points], [p.bar for p in points]
    axes.errorbar(
        x,
        means,
        bars,
        color=COLOURS[i % 7],
        marker=_marker(i),
        ms=3.5,
        lw=1,
        ls=line,
        capsize=2,
        elinewidth=0.7,
        label=label,
    )


def _around(means: Sequence[float], axes: Any) -> None:
    """Choose the range of accuracies by the means: the interval of a setting that failed in one run must not flatten the rest."""
    margin = 0.25 * (max(means) - min(means)) + 0.5
    axes.set_ylim(max(0.0, min(means) - margin), min(100.5, max(means) + margin))


def _below(axes: Any, columns: int = 2, drop: float = -0.2) -> None:
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, drop), ncol=columns, columnspacing=1.0)


def _curve(mine: pd.DataFrame, published: Published, labels: Labels) -> None:
    """Binary accuracy against sparsity, one line for each arm; controls far below are named in the legend instead."""
    _, axes = plt.subplots(figsize=(3.4, 2.4))
    best = mine.groupby("arm", sort=False).accuracy.max()
    shown = [a for a in best.index if best[a] >= best.max() - 8]
    for i, arm in enumerate(shown):
        label, group = labels.get(arm, arm), mine[mine.arm == arm]
        if group.asked.isna().all():
            level = t_interval(list(group.accuracy)).mean
            axes.axhline(level, color=COLOURS[i % 7], lw=1, ls="--", label=f"{label}: {level:.1f} %")
            continue
        by = [(d, list(g.accuracy)) for d, g in group.groupby("asked", sort=True)]
        _band(axes, [d for d, _ in by], [v for _, v in by], i, label, LINES[i // 7])
    for density, accuracy, source in published:
        axes.plot(density, accuracy, "*", color="black", ms=6, mfc="none")
        axes.annotate(
            f"published, {source}", (density, accuracy), xytext=(5, -3), textcoords="offset points", fontsize=6
        )
    for arm in (a for a in best.index if a not in shown):
        axes.plot([], [], " ", label=f"{labels.get(arm, arm)}: {mine[mine.arm == arm].accuracy.mean():.0f} % (below)")
    ticks = sorted({float(d) for d in mine.asked.dropna()})
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(ticks, [f"{100 * (1 - d):g}" for d in ticks])
    axes.set_xticks([], minor=True)
    means = [g.accuracy.mean() for _, g in mine[mine.arm.isin(shown)].groupby(["arm", "asked"], dropna=False)]
    # A point that collapsed must not flatten all the others; it leaves the picture and stays in the table.
    means = [m for m in means if m >= max(means) - 12] + [accuracy for _, accuracy, _ in published]
    margin = 0.15 * (max(means) - min(means)) + 0.3
    axes.set_ylim(max(0.0, min(means) - 2 * margin), min(100.5, max(means) + margin))
    axes.set_xlabel("sparsity of the gated weights (%), log scale of density")
    axes.set_ylabel(f"{best_part(mine)} accuracy (%)")
    _below(axes)


def _methods(mine: pd.DataFrame, labels: Labels) -> None:
    """Many methods side by side: one panel for each density, one row for each arm; references without a density are named below."""
    rivals, levels = mine[mine.asked.notna()], mine[mine.asked.isna()].groupby("arm", sort=False).accuracy.mean()
    rows, densities = list(rivals.arm.unique())[::-1], sorted(rivals.asked.unique(), reverse=True)
    size = (6.8, 0.7 + 0.15 * len(rows))
    figure, panels = plt.subplots(1, len(densities), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, asked in zip(panels[0], densities, strict=True):
        found = {a: t_interval(list(g.accuracy)) for a, g in rivals[rivals.asked == asked].groupby("arm")}
        lowest = max(i.mean for i in found.values()) - 8  # one that failed must not flatten all the others
        for y, i in ((rows.index(a), i) for a, i in found.items()):
            if i.mean < lowest:
                axes.annotate(
                    f"$\\leftarrow$ {i.mean:.1f}",
                    (0.03, y),
                    xycoords=("axes fraction", "data"),
                    fontsize=6,
                    va="center",
                )
            else:
                axes.errorbar(i.mean, y, xerr=i.bar, color=COLOURS[0], marker="o", ms=3, capsize=2, lw=1)
        near = [m for m in (*(i.mean for i in found.values()), *levels) if m >= lowest]
        margin = 0.15 * (max(near) - min(near)) + 0.3
        axes.set_xlim(min(near) - 2 * margin, min(100.5, max(near) + margin))
        for level in levels[levels >= lowest]:
            axes.axvline(level, color=COLOURS[1], lw=1, ls="--")
        axes.set_title(f"{100 * (1 - asked):g} % sparse")
    panels[0, 0].set_yticks(range(len(rows)), [labels.get(a, a.replace("_", " ")) for a in rows])
    panels[0, 0].set_ylim(-0.6, len(rows) - 0.4)
    named = ", ".join(f"{labels.get(str(a), str(a).replace('_', ' '))} {v:.1f}" for a, v in levels.items())
    figure.supxlabel(
        f"{best_part(mine)} accuracy (%)" + (f"; dashed, or left of all: {named}" if named else ""), fontsize=7
    )


def _log_ticks(axes: Any) -> None:
    """Mark 1, 2, 5, 10, 20 ... along x."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xticks([], minor=True)


def _cost(mine: pd.DataFrame, labels: Labels) -> None:
    """Accuracy against what the search costs, in arithmetic and in time, one line for each arm."""
    figure, panels = plt.subplots(1, 2, figsize=(6.8, 2.4), sharey=True)
    means = mine.groupby(["arm", "epochs"], sort=False).accuracy.mean()
    lowest = means.max() - 8  # what failed leaves the picture, and must not flatten the rest
    for i, arm in enumerate(mine.arm.unique()):
        by = list(mine[mine.arm == arm].groupby("epochs", sort=True))
        label = labels.get(arm, arm) + (" (leaves the picture)" if means[arm].min() < lowest else "")
        for axes, field, unit in zip(panels, ("work", "search_seconds"), (1e12, 1.0), strict=True):
            x = [g[field].astype(float).mean() / unit for _, g in by]
            _band(axes, x, [list(g.accuracy) for _, g in by], i, label if field == "work" else None)
    _around(list(means[means >= lowest]), panels[0])
    for axes, text in zip(panels, ("forward and backward TFLOP of the search", "seconds of the search"), strict=True):
        axes.set_xlabel(text)
        if axes.dataLim.minpos[0] < math.inf:  # old records do not say what a run cost
            _log_ticks(axes)
    panels[0].set_ylabel(f"{best_part(mine)} accuracy (%)")
    figure.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncol=3, columnspacing=1.0)


def _winners(mine: pd.DataFrame, published: Mapping[str, Mapping[float, float]], labels: Labels) -> None:
    """Accuracy of trained tickets against sparsity and against the seconds that each took in all; hollow: published."""
    # One point cannot stand for the several settings of an arm; these stand in the table.
    mine = mine.groupby("arm", sort=False).filter(lambda g: g.groupby("asked").setting.nunique().max() == 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.6), sharey=True)
    ticks, arms = {float(d) for d in mine.asked if d < 1}, list(mine.arm.unique())
    apart = (
        (max(ticks) / min(ticks)) ** 0.008 if len(ticks) > 1 else 1.01
    )  # beside each other, that their intervals can be told apart
    for i, arm in enumerate(arms):
        group, label, line = mine[mine.arm == arm], labels.get(arm, arm), LINES[i // 7]
        if (group.asked >= 1).all():
            theirs = published.get(arm, {}).get(1.0)
            text = f"{label}: {group.accuracy.mean():.1f} %" + (f" (published {theirs} %)" if theirs else "")
            left.axhline(group.accuracy.mean(), color="black", lw=0.7, ls=":", label=text)
            continue
        by = [(float(d), g) for d, g in group.groupby("asked", sort=True)]
        _band(
            left, [d * apart ** (len(arms) / 2 - i) for d, _ in by], [list(g.accuracy) for _, g in by], i, label, line
        )
        _band(
            right,
            [g.search_seconds.astype(float).mean() for _, g in by],
            [list(g.accuracy) for _, g in by],
            i,
            None,
            line,
        )
        if arm in published:
            points = sorted(published[arm].items())
            left.plot(*zip(*points, strict=True), _marker(i), color=COLOURS[i % 7], ms=5, mfc="none", lw=0)
    left.set_xscale("log")
    left.invert_xaxis()
    left.set_xticks(sorted(ticks), [f"{100 * (1 - d):.4g}" for d in sorted(ticks)])
    left.set_xticks([], minor=True)
    left.set_xlabel("sparsity (%), log scale of density")
    left.set_ylabel(f"{best_part(mine)} accuracy (%)")
    _log_ticks(right)
    right.set_xlabel("seconds of a ticket, its training included")
    # Random masks may fall far out of the picture; their numbers stand in the table.
    _around([g.accuracy.mean() for (arm, _), g in mine.groupby(["arm", "asked"]) if arm != "random"], left)
    if published:
        left.plot(
            [], [], "o", color="black", mfc="none", ms=5, lw=0, label="hollow: published or public code, other settings"
        )
    figure.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncol=4, columnspacing=1.0)


def _dots(mine: pd.DataFrame, published: Mapping[str, Mapping[float, float]], labels: Labels) -> None:
    """One line for each arm and setting: accuracy with its interval; hollow: published.

    What lies far below is named at the edge.
    """
    groups = list(specs(mine))[::-1]
    _, axes = plt.subplots(figsize=(3.4, 0.35 + 0.19 * len(groups)))
    colour = {arm: i for i, arm in enumerate(mine.arm.unique())}
    found = [t_interval(list(g.accuracy)) for _, _, g in groups]
    edge = max(i.mean for i in found) - 60
    names = []
    for y, ((arm, text, g), i) in enumerate(zip(groups, found, strict=True)):
        c = colour[arm]
        if i.mean < edge:
            axes.annotate(
                f"$\\leftarrow$ {i.mean:.1f}", (0.01, y), xycoords=("axes fraction", "data"), fontsize=6, va="center"
            )
        else:
            axes.errorbar(i.mean, y, xerr=i.bar, color=COLOURS[c % 7], marker=MARKERS[c % 7], ms=4, capsize=2, lw=1)
        if (theirs := published.get(arm, {}).get(g.asked.iloc[0])) is not None:
            axes.plot(theirs, y, MARKERS[c % 7], color=COLOURS[c % 7], ms=5, mfc="none")
        closed, sparse = 100 * (1 - g.units.astype(float).mean()), 100 * (1 - g.density.mean())
        much = (
            f"{closed:.0f} % of units closed" if g.units.notna().all() else f"{sparse:.1f} % sparse" if sparse else ""
        )
        names.append(", ".join(filter(None, [labels.get(arm, arm.replace("_", " ")), text, much])))
    axes.set_yticks(range(len(groups)), names, fontsize=6)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_xlabel(f"{best_part(mine)} accuracy (%)" + ("; hollow: published" if published else ""))


def _lines(mine: pd.DataFrame, experiment: Experiment) -> None:
    """Accuracy, and sparsity where it was not asked for, against the field `x` of the experiment."""
    free = bool(mine.asked.isna().all())
    figure, panels = plt.subplots(1 + free, 1, figsize=(3.4, 1.9 * (1 + free)), sharex=True, squeeze=False)
    field = experiment.x.removeprefix("options.")
    level, mine = mine[mine.x.isna()], mine[mine.x.notna()]
    xs = sorted({float(x) for x in mine.x})
    if xs[0] > 0 and xs[-1] / xs[0] > 20:
        panels[0, 0].set_xscale("log")
    lines: dict[str, dict[float, pd.DataFrame]] = {}
    cut: list[Any] = []
    for arm, text, g in specs(mine):
        rest = ", ".join(f"{k} {v}" for k, v in setting(text).items() if k != field)
        name = ", ".join(
            filter(None, [experiment.labels.get(arm, arm.replace("_", " ")), rest.replace("weight", "$\\lambda$")])
        )
        lines.setdefault(name, {})[float(g.x.iloc[0])] = g
    for i, (name, points) in enumerate(lines.items()):
        order = sorted(points)
        style = LINES[i // 7 % 4]
        _band(panels[0, 0], order, [list(points[x].accuracy) for x in order], i, name, style)
        if free:
            _band(panels[1, 0], order, [list(100 * (1 - points[x].density)) for x in order], i, None, style)
        for x in (x for x in order if not free and points[x].density_missed.astype(bool).any()):
            cut.append(
                panels[0, 0].plot(
                    x, points[x].accuracy.mean(), _marker(i), color=COLOURS[i % 7], ms=5, mfc="white", zorder=3
                )[0]
            )
    for i, arm in enumerate(map(str, level.arm.unique()), start=len(lines)):
        height = level[level.arm == arm].accuracy.mean()
        panels[0, 0].axhline(
            height, color=COLOURS[i % 7], lw=1, ls="--", label=experiment.labels.get(arm, arm.replace("_", " "))
        )
    if cut:
        panels[0, 0].plot(
            [], [], "o", color="black", ms=5, mfc="white", lw=0, label="hollow: density missed, cut to it"
        )
    panels[0, 0].set_ylabel(f"{best_part(mine)} accuracy (%)")
    means = [g.accuracy.mean() for points in lines.values() for g in points.values()]
    _around(means + [g.accuracy.mean() for _, g in level.groupby("arm")], panels[0, 0])
    if free:
        panels[1, 0].set_ylabel("sparsity (%)")
    panels[-1, 0].set_xlabel(FIELDS.get(experiment.x, field))
    if len(xs) <= 8:
        panels[-1, 0].set_xticks(xs, [f"{x:g}" for x in xs])
        panels[-1, 0].set_xticks([], minor=True)
    figure.legend(
        frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02 if free else -0.05), ncol=2, columnspacing=1.0
    )


def _width(mine: pd.DataFrame, published: Sequence[Mapping[str, float]], labels: Labels) -> None:
    """Error on a log scale, and the gap in accuracy to the trained dense network, against the number of weights."""
    figure, (top, low) = plt.subplots(2, 1, figsize=(3.4, 3.6), sharex=True)
    level = by_width(mine)
    for i, (arm, found) in enumerate(level.items()):
        order = sorted(found, reverse=True)
        _band(top, order, [[100 - v for v in found[x]] for x in order], i, labels.get(arm, arm))
    if published:
        top.plot(
            [p["weights"] for p in published],
            [100 - p["accuracy"] for p in published],
            "*",
            color="black",
            ms=5,
            mfc="none",
            label="thesis (read from its figure)",
        )
    dense = level.get("dense_trained", {})
    for i, arm in enumerate(level):
        shared = sorted(set(level[arm]) & set(dense), reverse=True)
        if arm != "dense_trained" and shared:
            gaps = [[d - v for d, v in zip(dense[x], level[arm][x], strict=False)] for x in shared]
            _band(low, shared, gaps, i, None)
    top.set_xscale("log")
    top.invert_xaxis()
    top.set_yscale("log")
    top.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    top.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    top.set_yticks([], minor=True)
    top.set_ylabel(f"{best_part(mine)} error (%)")
    low.set_ylabel("dense, trained minus ticket\n(points)")
    low.set_xlabel("weights of the network before gating (% of LeNet-300-100)")
    low.set_xticks([100, 30, 10, 3, 1], ["100", "30", "10", "3", "1"])
    low.set_xticks([], minor=True)
    figure.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncol=2, columnspacing=1.0)


def _penalties(mine: pd.DataFrame, labels: Labels) -> None:
    """Binary accuracy and sparsity against lambda, one column for each initial law, one line for each penalty."""
    arms = list(mine.arm.unique())
    figure, panels = plt.subplots(
        2, len(arms), figsize=(1.75 * len(arms) + 0.3, 3.3), sharex=True, sharey="row", squeeze=False
    )
    said = mine.setting.map(setting)
    found = mine.assign(
        penalty=said.map(lambda s: s.get("penalty", "induce_sparse")),
        weight=said.map(lambda s: float(s.get("weight", "nan"))),
    )
    for column, arm in enumerate(arms):
        for i, penalty in enumerate(found.penalty.unique()):
            by = [
                (w, g) for w, g in found[(found.arm == arm) & (found.penalty == penalty)].groupby("weight", sort=True)
            ]
            weights = [w for w, _ in by]
            _band(
                panels[0, column],
                weights,
                [list(g.accuracy) for _, g in by],
                i,
                labels.get(penalty, penalty) if not column else None,
            )
            _band(panels[1, column], weights, [list(100 * (1 - g.density)) for _, g in by], i, None)
        panels[0, column].set_title(arm.replace("_", " "))
        panels[1, column].set_xscale("log")
        panels[1, column].set_xticks(sorted(found.weight.unique()), [f"{w:g}" for w in sorted(found.weight.unique())])
        panels[1, column].set_xticks([], minor=True)
    _around([g.accuracy.mean() for _, g in found.groupby(["arm", "penalty", "weight"])], panels[0, 0])
    panels[0, 0].set_ylabel(f"{best_part(mine)} accuracy (%)")
    panels[1, 0].set_ylabel("sparsity (%)")
    figure.supxlabel(FIELDS["options.weight"], fontsize=8)
    figure.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=2, columnspacing=1.0)


def _mu(record: Mapping[str, Any], stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of the gates in each bin in %, kept above 0 for a log axis, and the edges of the bins."""
    low, high, count = record["anatomy"]["bins"]
    counts = np.array(record["anatomy"]["mu"][stage], float)
    return 100 * counts / counts.sum() + 1e-4, np.linspace(low, high, int(count) + 1)


def histograms(records: Mapping[str, Mapping[str, Any]], path: Path, labels: Labels) -> Path:
    """Draw mu at the start, the middle and the end, and the share of fractional gates over training, one row for each record."""
    with _figure(path):
        figure, panels = plt.subplots(len(records), 4, figsize=(6.8, 1.05 * len(records) + 0.4), squeeze=False)
        for row, (name, record) in zip(panels, records.items(), strict=True):
            for axes, stage in zip(row, ("start", "middle", "end"), strict=False):
                axes.stairs(*_mu(record, stage), fill=True, color=COLOURS[0])
                axes.set_yscale("log")
                axes.set_ylim(0.01, 150)
                axes.set_yticks([0.01, 1, 100], ["0.01", "1", "100"])
            epochs = record["anatomy"]["epochs"]
            row[3].plot(
                [e["epoch"] for e in epochs],
                [100 * e["undecided"] for e in epochs],
                "-o",
                ms=2.5,
                lw=1,
                color=COLOURS[1],
            )
            row[3].set_ylim(-3, 103)
            row[0].set_ylabel(labels.get(name, name).replace(", ", ",\n"), fontsize=6.5)
        for axes, text in zip(panels[0], ("start", "half time", "end", "fractional gates (%)"), strict=True):
            axes.set_title(text)
        for axes in panels[:-1].flat:
            axes.tick_params(labelbottom=False)
        for axes in panels[-1, :3]:
            axes.set_xlabel("$\\mu$")
        panels[-1, 3].set_xlabel("epoch")
        figure.supylabel("share of gates in a bin (%)", fontsize=7, x=-0.01)
        figure.subplots_adjust(hspace=0.25, wspace=0.35)
    return path


def inside(anatomy: Anatomy, path: Path) -> Path:
    """Draw one ticket: kept weights per input pixel, layer densities with dead units, histograms of mu, gates over time."""
    record, sizes = anatomy.record, anatomy.cell.spec.layer_sizes()
    with _figure(path):
        figure, (pixels, layers, mus, course) = plt.subplots(1, 4, figsize=(6.8, 1.6), constrained_layout=True)
        image = pixels.imshow(anatomy.first, cmap="cividis")
        pixels.set_title("kept first-layer weights\nper input pixel")
        pixels.grid(False)
        pixels.set_xticks([])
        pixels.set_yticks([])
        figure.colorbar(image, ax=pixels, shrink=0.8)
        names = list(record["layers"])
        density = [100 * n["kept"] / n["total"] for n in record["layers"].values()]
        layers.bar(range(len(names)), density, color=COLOURS[0])
        for i, (name, value) in enumerate(zip(names, density, strict=True)):
            layers.annotate(
                f"{value:.1f}\n{record['dead_units'][name]}/{sizes[i][1]} cut off",
                (i, value),
                ha="center",
                va="bottom",
                fontsize=5,
            )
        layers.set_ylim(0, 1.45 * max(density))
        layers.set_xticks(range(len(names)), [n.removesuffix(".weight") for n in names])
        layers.set_title("density (%), units that\nno kept weight reaches")
        for i, stage in enumerate(("start", "middle", "end")):
            mus.stairs(*_mu(record, stage), color=COLOURS[i], label=stage)
        mus.set_yscale("log")
        mus.set_ylim(0.01, 300)
        mus.set_title("$\\mu$ (% of gates, log)")
        mus.legend(frameon=False, fontsize=5.5)
        epochs = record["anatomy"]["epochs"]
        for i, (key, label) in enumerate((("density", "open, $\\mu > 1/2$"), ("undecided", "$0 < \\mu < 1$"))):
            course.plot(
                [e["epoch"] for e in epochs],
                [100 * e[key] for e in epochs],
                marker=MARKERS[i],
                ms=2.5,
                lw=1,
                color=COLOURS[i],
                label=label,
            )
        course.set_title("gates over epochs (%)")
        course.set_xlabel("epoch")
        course.legend(frameon=False, fontsize=5.5)
    return path


def by_objective(
    found: pd.DataFrame, titles: Mapping[str, str], path: Path, demonstration: bool, labels: Labels
) -> Path:
    """Draw what tickets are worth as they were drawn: one panel for each objective, all to be minimised, one line for each arm."""
    arms, densities = list(found.arm.unique()), sorted(found.density.unique(), reverse=True)
    with _figure(path, demonstration):
        columns = math.ceil(len(titles) / 2)
        figure, panels = plt.subplots(
            2, columns, figsize=(6.8, 3.4 + 0.1 * len(arms)), sharex=True, squeeze=False, layout="constrained"
        )
        for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
            for i, arm in enumerate(arms):
                mine = found[(found.arm == arm) & np.isfinite(found[name].astype(float))]
                by = [(float(d), list(g[name].astype(float))) for d, g in mine.groupby("density", sort=True)]
                _band(axes, [d for d, _ in by], [v for _, v in by], i, labels.get(arm, arm), LINES[i // 7])
            axes.set_title(title)
            middles = [g[name].astype(float).mean() for _, g in found.groupby(["arm", "density"])]
            if name != "gradnorm" and max(middles) > 20 * max(min(middles), 1e-9):
                axes.set_yscale("log")
            axes.set_xscale("log")
            axes.set_xticks(densities, [f"{100 * (1 - d):.4g}" for d in densities])
            axes.set_xticks([], minor=True)
        panels[0, 0].invert_xaxis()
        handles, texts = panels[0, 0].get_legend_handles_labels()
        for axes in panels.flat[len(titles) :]:
            axes.axis("off")
        figure.legend(handles, texts, frameon=False, loc="outside lower center", ncol=4, columnspacing=1.0)
        for axes in panels.flat[columns : len(titles)]:
            axes.set_xlabel("sparsity (%)")
    return path


def by_depth(found: Sequence[Layers], path: Path, demonstration: bool, labels: Labels) -> Path:
    """Draw sparsity by layer, from the first to the last: one panel for each density, one line for each arm, seeds as its interval."""
    densities = sorted({f.asked for f in found}, reverse=True)
    arms = list(dict.fromkeys(f.arm for f in found))
    with _figure(path, demonstration):
        figure, panels = plt.subplots(
            1, len(densities), figsize=(0.4 + 2.2 * len(densities), 2.2), squeeze=False, layout="constrained"
        )
        for axes, asked in zip(panels[0], densities, strict=True):
            for f in (f for f in found if f.asked == asked):
                i = arms.index(f.arm)
                _band(
                    axes, range(1, len(f.names) + 1), list(f.sparsity.T), i, labels.get(f.arm, f.arm), LINES[i // 7 % 4]
                )
            axes.axhline(100 * (1 - asked), color="black", lw=0.7, ls=":")
            axes.set_title(f"{100 * (1 - asked):g} % together")
            axes.set_xlabel("layer, from the input on")
        panels[0, 0].set_ylabel("sparsity of the layer (%)")
        handles = {text: h for axes in panels[0] for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(), handles.keys(), frameon=False, loc="outside lower center", ncol=max(1, len(densities)) + 1
        )
    return path


def by_head(found: Layers, path: Path, demonstration: bool, labels: Labels) -> Path:
    """Draw the sparsity of queries, keys and values by block: the mean over seeds and heads, and the range of the heads' means."""
    if found.heads is None:
        raise ValueError(f"{found.arm} has no blocks with attention heads")
    with _figure(path, demonstration):
        figure, axes = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
        blocks, heads = range(1, found.heads.shape[1] + 1), found.heads.mean(0)
        for i, name in enumerate(("queries", "keys", "values")):
            axes.plot(
                blocks, np.nanmean(heads[:, i], -1), color=COLOURS[i], marker=MARKERS[i], ms=3.5, lw=1, label=name
            )
            axes.fill_between(
                blocks, np.nanmin(heads[:, i], -1), np.nanmax(heads[:, i], -1), color=COLOURS[i], alpha=0.15, lw=0
            )
        axes.set_xticks(blocks)
        axes.set_xlabel("block")
        axes.set_ylabel("sparsity (%), range over heads")
        axes.set_title(f"{labels.get(found.arm, found.arm)}, {100 * (1 - found.asked):g} % together")
        figure.legend(frameon=False, loc="outside lower center", ncol=3)
    return path
