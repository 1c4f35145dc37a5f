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

from crbg.report.stats import t_interval

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
FEW = 5  # with fewer seeds, figures show every seed instead of an interval
SEEDS: Any = {"ms": 2, "alpha": 0.45, "mew": 0, "lw": 0, "gid": "seeds"}
HOLLOW: Any = {"mfc": "none", "lw": 0}


@contextmanager
def figure(path: Path, demonstration: bool = False) -> Iterator[None]:
    """Write the current figure as PDF, PNG and SVG, without dates: the same records give byte-identical files."""
    with mpl.rc_context(STYLE):
        yield
        current = plt.gcf()
        if demonstration:
            current.suptitle("demonstration, not evidence", fontsize=7)
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
    """Draw the mean of each group along x, with its 95 % interval or, if a group has fewer than `FEW` seeds, the seeds.

    An interval of three seeds is about four times as wide as their standard deviation and says less than the seeds.
    """
    points, few = [t_interval(list(g)) for g in groups], min(map(len, groups), default=0) < FEW
    look: Any = {"color": colour(i), "marker": marker(i), "ms": 3.5, "lw": 1, "ls": style}
    bars = None if few else [p.bar for p in points]
    axes.errorbar(x, [p.mean for p in points], bars, capsize=2, elinewidth=0.7, label=label, **look)
    for at, group in zip(x, groups, strict=True):
        if few and len(group) > 1:
            axes.plot([at] * len(group), group, marker(i), color=colour(i), **SEEDS)


def dot(axes: Any, y: float, values: Sequence[float], lowest: float, i: int, mark: str) -> None:
    """Draw a mean in row y, with its interval or its seeds as in `band`; below `lowest`, print it at the left edge."""
    found = t_interval(list(values))
    if found.mean < lowest:
        at: Any = {"xycoords": ("axes fraction", "data"), "fontsize": 6, "va": "center"}
        axes.annotate(f"$\\leftarrow$ {found.mean:.1f}", (0.02, y), **at)
        return
    bar = found.bar if found.n >= FEW else None
    axes.errorbar(found.mean, y, xerr=bar, color=colour(i), marker=mark, ms=3.5, capsize=2, lw=1)
    if 1 < found.n < FEW:
        axes.plot(values, [y] * found.n, mark, color=colour(i), **SEEDS)


def mark_cut(axes: Any, along: str = "y") -> None:
    """Mark every seed and every interval that continues beyond the axes with a triangle at the edge.

    Args:
        axes: axes whose limits are final.
        along: the axis of the measured values, `x` or `y`.
    """
    k = "xy".index(along)
    edges, shapes = sorted((axes.get_xlim(), axes.get_ylim())[k]), (("<", ">"), ("v", "^"))[k]
    for points, shade in [*_ends(axes)]:
        for point in points:
            for edge, shape, beyond in zip(edges, shapes, (point[k] < edges[0], point[k] > edges[1]), strict=True):
                if beyond:
                    at = (edge, point[1]) if k == 0 else (point[0], edge)
                    axes.plot(
                        *at, shape, color=shade, ms=3.5, mew=0, clip_on=False, zorder=4, scalex=False, scaley=False
                    )


def _ends(axes: Any) -> Iterator[tuple[list[tuple[float, float]], Any]]:
    """Yield the ends of the intervals and the seeds in these axes, with their colours."""
    for data, _, bars in axes.containers:
        for segment in bars[0].get_segments() if bars else ():
            yield [(float(x), float(y)) for x, y in segment], data.get_color()
    for seeds in [line for line in axes.lines if line.get_gid() == SEEDS["gid"]]:
        yield [(float(x), float(y)) for x, y in zip(*seeds.get_data(), strict=True)], seeds.get_color()


def fit(axes: Any, means: Sequence[float]) -> None:
    """Set the range of the accuracy axis from the means, so that one wide interval does not flatten the curves."""
    margin = 0.25 * (max(means) - min(means)) + 0.5
    axes.set_ylim(max(0.0, min(means) - margin), min(100.5, max(means) + margin))
    mark_cut(axes)


def log_ticks(axis: Any, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Put ticks at these multiples of the powers of ten along a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=subs))
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


def legend_outside(figure: Any, columns: int, *handles: Any, title: str | None = None) -> None:
    """In a figure with constrained layout, put the legend below the panels."""
    look: Any = {"title": title, "title_fontsize": 7, **LEGEND}
    figure.legend(*handles, loc="outside lower center", ncol=columns, **look)
