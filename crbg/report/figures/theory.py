"""Figures for docs/explanation/theory.md: the width that a target needs, and the course of relaxed gates."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from crbg.data.datasets import info
from crbg.report.figures.labels import Labels, label
from crbg.report.figures.style import LEGEND, band, figure, legend_below, line
from crbg.report.records_table import specs
from crbg.report.tables import best_part

SMALLEST = 1e-10  # smaller errors are rounding


def representation(mine: pd.DataFrame, labels: Labels) -> None:
    """Draw the squared error against the number of hidden units, beside the shape of two bounds."""
    _, axes = plt.subplots(figsize=(3.4, 2.8))
    inputs = info(str(mine.data.iloc[0])).shape[0]
    arms: dict[str, dict[int, list[float]]] = {}
    for arm, _, group in specs(mine):
        hidden = int(str(group.model.iloc[0]).split("-")[1])
        arms.setdefault(arm, {})[hidden] = [max(SMALLEST, v) for v in group.value]
    for i, (arm, found) in enumerate(arms.items()):
        order = sorted(found)
        band(axes, order, [found[w] for w in order], i, label(arm, labels), line(i))
    widest = max(w for found in arms.values() for w in found)
    # A map with d inputs and an error epsilon in each entry, with all constants set to 1: d log2(d / epsilon) units for
    # subset sums (Pensia et al.), or d k (1 + ln k) to collect k = log2(1 / epsilon) parts per entry (Orseau et al.).
    error = np.logspace(-5, 0, 60)
    k = np.log2(1 / error).clip(1)
    bounds = {
        "$d\\,\\log_2(d/\\epsilon)$": inputs * np.log2(inputs / error),
        "$d\\,k(1+\\ln k)$": inputs * k * (1 + np.log(k)),
    }
    for (name, width), style in zip(bounds.items(), (":", "-."), strict=True):
        inside = width <= widest
        axes.plot(width[inside], error[inside] ** 2, color="0.45", lw=0.9, ls=style, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("hidden units of the random network")
    axes.set_ylabel(f"{best_part(mine)} squared error / variance")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, **LEGEND)


def relaxation(courses: pd.DataFrame, path: Path, demonstration: bool, labels: Labels) -> Path:
    """Draw the share of undecided gates, and the losses with relaxed gates and of the binary ticket, by epoch."""
    with figure(path, demonstration):
        drawn, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.4))
        for i, arm in enumerate(courses.arm.unique()):
            by = list(courses[courses.arm == arm].groupby("epoch", sort=True))
            epochs = [float(str(e)) for e, _ in by]
            text = label(str(arm), labels)
            band(left, epochs, [list(100 * g.undecided) for _, g in by], i, text)
            gaps = [[math.log10(b / r) for b, r in zip(g.binary, g.relaxed, strict=True)] for _, g in by]
            band(right, epochs, gaps, i, None)
        left.set_ylabel("undecided gates (%)")
        right.set_ylabel("$\\log_{10}$(binary / relaxed loss)")
        right.axhline(0, color="0.5", lw=0.7)
        for axes in (left, right):
            axes.set_xlabel("epoch of the search")
        legend_below(drawn, 4)
    return path
