"""One style for all figures, with colours that colour-blind readers can tell apart (Okabe & Ito)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import LogLocator, StrMethodFormatter

mpl.use("Agg")
import matplotlib.pyplot as plt

from crbg.report.stats import Interval, t_interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 200,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,
    "svg.hashsalt": "crbg",
}
LEGEND: Any = {"frameon": False, "columnspacing": 1.0}
HOLLOW: Any = {"mfc": "none", "lw": 0}


@contextmanager
def figure(path: Path, demonstration: bool = False) -> Iterator[None]:
    """Write the current figure as PDF, PNG and SVG, without dates: the same records give byte-identical files."""
    with mpl.rc_context(STYLE):
        yield
        current = plt.gcf()
        if demonstration:
            current.suptitle("demonstration on digits, not evidence", fontsize=7)
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, blank in ((".pdf", "CreationDate"), (".png", "Software"), (".svg", "Date")):
            current.savefig(path.with_name(path.name + suffix), metadata={blank: None})
        plt.close(current)


def colour(i: int) -> str:
    """Return the colour of the i-th line."""
    return COLOURS[i % 7]


def marker(i: int) -> str:
    """Return the marker of the i-th line; lines of the same colour have different markers."""
    return MARKERS[(i + i // 7) % 7]


def line(i: int) -> str:
    """Return the line style of the i-th line."""
    return LINES[i // 7 % 4]


def band(
    axes: Any, x: Sequence[Any], groups: Sequence[Sequence[float]], i: int, label: str | None, style: str = "-"
) -> None:
    """Draw the mean of each group with its 95 % interval along x."""
    points = [t_interval(list(g)) for g in groups]
    look: Any = {"color": colour(i), "marker": marker(i), "ms": 3.5, "lw": 1, "ls": style}
    means, bars = [p.mean for p in points], [p.bar for p in points]
    axes.errorbar(x, means, bars, capsize=2, elinewidth=0.7, label=label, **look)


def dot(axes: Any, y: int, found: Interval, lowest: float, i: int, mark: str) -> None:
    """Draw one accuracy with its interval in row y; an accuracy below `lowest` is printed at the left edge instead."""
    if found.mean < lowest:
        at: Any = {"xycoords": ("axes fraction", "data"), "fontsize": 6, "va": "center"}
        axes.annotate(f"$\\leftarrow$ {found.mean:.1f}", (0.02, y), **at)
    else:
        axes.errorbar(found.mean, y, xerr=found.bar, color=colour(i), marker=mark, ms=3.5, capsize=2, lw=1)


def fit(axes: Any, means: Sequence[float]) -> None:
    """Set the range of the accuracy axis from the means, so that one wide interval does not flatten the curves."""
    margin = 0.25 * (max(means) - min(means)) + 0.5
    axes.set_ylim(max(0.0, min(means) - margin), min(100.5, max(means) + margin))


def log_ticks(axis: Any) -> None:
    """Put ticks at 1, 2, 5, 10, 20 and so on along a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_ticks([], minor=True)


def ticks(axes: Any, at: Sequence[float], texts: Sequence[str]) -> None:
    """Put ticks at these positions along x and at no others."""
    axes.set_xticks(at, texts)
    axes.set_xticks([], minor=True)


def sparsity_axis(axes: Any, densities: Sequence[float], form: str = "g") -> None:
    """Make x a log scale of density, labelled by sparsity in %."""
    axes.set_xscale("log")
    ticks(axes, densities, [f"{100 * (1 - d):{form}}" for d in densities])


def legend_below(figure: Any, columns: int, drop: float = -0.05) -> None:
    """Put the legend of a whole figure below it."""
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, drop), ncol=columns, **LEGEND)


def legend_outside(figure: Any, columns: int, *handles: Any) -> None:
    """In a figure with constrained layout, put the legend below the panels."""
    figure.legend(*handles, loc="outside lower center", ncol=columns, **LEGEND)
