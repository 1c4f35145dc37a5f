"""Figures as PDF and PNG, one style, colours that colour-blind readers can tell apart (Okabe & Ito)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

from crbg.config import Experiment
from crbg.report.tables import best_part
from crbg.stats import t_interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 6.5, "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "figure.dpi": 200, "savefig.bbox": "tight", "axes.grid": True, "grid.alpha": 0.3, "pdf.fonttype": 42,
}  # fmt: skip

LABELS = {
    "crbg": "CRBG", "crbg_no_noise": "CRBG, no noise", "edge_popup": "edge-popup (per layer)", "random_mask": "random mask",
    "dense_random": "dense, random weights", "dense_trained": "dense, trained",
}  # fmt: skip


def curve(rows: pd.DataFrame, experiment: Experiment, path: Path, demonstration: bool, published: list[tuple[float, float, str]]) -> Path:
    """Draw binary accuracy against sparsity, one line for each arm; controls far below are named in the legend instead.

    `published` holds (density, accuracy, source) of the claims that the experiment is to judge.
    """
    mine = rows[(rows.experiment == experiment.name) & (rows.reading == "binary")]
    part = best_part(mine)
    mine = mine[mine.part == part]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.4, 2.4))
        arms = list(mine.arm.unique())
        best = mine.groupby("arm").accuracy.max()
        shown = [a for a in arms if best[a] >= best.max() - 25]
        below = [a for a in arms if a not in shown]
        for i, arm in enumerate(shown):
            label, group = LABELS.get(arm, arm), mine[mine.arm == arm]
            if group.asked.isna().all():
                level = t_interval(list(group.accuracy)).mean
                axes.axhline(level, color=COLOURS[i % 7], lw=1, ls="--", label=f"{label}: {level:.1f} %")
                continue
            points = [(d, t_interval(list(g.accuracy))) for d, g in group.groupby("asked", sort=True)]
            reach = [p.half if math.isfinite(p.half) else 0.0 for _, p in points]
            axes.errorbar(
                [d for d, _ in points], [p.mean for _, p in points], reach, color=COLOURS[i % 7], marker=MARKERS[i % 7],
                ms=3.5, lw=1, capsize=2, label=label,
            )  # fmt: skip
        for density, accuracy, source in published:
            axes.plot(density, accuracy, "*", color="black", ms=6, mfc="none")
            axes.annotate(f"published, {source}", (density, accuracy), xytext=(5, -3), textcoords="offset points", fontsize=6)
        for arm in below:
            axes.plot([], [], " ", label=f"{LABELS.get(arm, arm)}: {mine[mine.arm == arm].accuracy.mean():.0f} % (below)")
        ticks = sorted({float(d) for d in mine.asked.dropna()})
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(ticks, [f"{100 * (1 - d):g}" for d in ticks])
        axes.set_xticks([], minor=True)
        means = [t_interval(list(g.accuracy)).mean for _, g in mine[mine.arm.isin(shown)].groupby(["arm", "asked"], dropna=False)]
        means += [accuracy for _, accuracy, _ in published]
        margin = 0.15 * (max(means) - min(means)) + 0.3
        axes.set_ylim(max(0.0, min(means) - 2 * margin), min(100.5, max(means) + margin))
        axes.set_xlabel("sparsity of the gated weights (%), log scale of density")
        axes.set_ylabel(f"{part} accuracy (%)")
        if demonstration:
            axes.set_title("demonstration on digits, not evidence", fontsize=7)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, columnspacing=1.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        # No dates in the files, so the same records give the same bytes.
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        plt.close(figure)
    return path
