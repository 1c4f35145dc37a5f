"""The figure of a search result: the density of each tensor, and the course of the search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crbg.gates.dtypes import fraction

if TYPE_CHECKING:
    from crbg.methods.contract import SearchResult

BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe & Ito, also told apart by colour-blind readers


def plot(found: SearchResult) -> Figure:
    """Return a figure of a search result; it belongs to no window, so it needs no display."""
    count = len(found.mask)
    figure = Figure(figsize=(9, max(2.8, 1.2 + 0.22 * count)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _densities(left, found)
    _course(right, found)
    return figure


def _densities(axes: Any, found: SearchResult) -> None:
    names = list(found.mask)
    values = [fraction(t) for t in found.mask.values()]
    axes.barh(range(len(names)), values, color=BLUE)
    axes.axvline(found.mask.density, color=ORANGE, lw=1.2, label=f"whole mask: {found.mask.density:.3g}")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()  # the first layer is at the top
    axes.set_xlabel("density")
    axes.set_title("kept weights by tensor")
    _tidy(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _course(axes: Any, found: SearchResult) -> None:
    axes.set_title("course of the search")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    rows = [row for row in found.history if "loss" in row]
    if not rows:
        axes.text(0.5, 0.5, "this method keeps no history", ha="center", transform=axes.transAxes)
        return
    epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
    axes.plot(epochs, [row["loss"] for row in rows], color=BLUE, marker="o", ms=3)
    axes.set_ylabel("loss", color=BLUE)
    if all("density" in row for row in rows):
        twin = axes.twinx()
        twin.plot(epochs, [row["density"] for row in rows], color=ORANGE, marker="s", ms=3)
        twin.set_ylabel("density of open gates", color=ORANGE)
        twin.set_ylim(bottom=0)
        twin.spines["top"].set_visible(False)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
