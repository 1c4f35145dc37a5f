"""Figures of a single ticket, of gates under each penalty, and of sparsity by layer and by attention head."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from crbg.report.anatomy import Anatomy
from crbg.report.depth import Layers
from crbg.report.figures.labels import Labels, label
from crbg.report.figures.style import COLOURS, MARKERS, band, figure, legend_outside, line

STAGES = ("start", "middle", "end")


def _mu(statistics: Mapping[str, Any], stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the gates in each bin in %, kept above 0 for a log axis, and the edges of the bins."""
    low, high, count = statistics["bins"]
    counts = np.array(statistics["mu"][stage], float)
    return 100 * counts / counts.sum() + 1e-4, np.linspace(low, high, int(count) + 1)


def histograms(found: Mapping[str, Mapping[str, Any]], path: Path, labels: Labels) -> Path:
    """Draw mu at three stages and the share of fractional gates over training, one row for each run."""
    with figure(path):
        page, panels = plt.subplots(len(found), 4, figsize=(6.8, 1.05 * len(found) + 0.4), squeeze=False)
        for row, (name, statistics) in zip(panels, found.items(), strict=True):
            for axes, stage in zip(row, STAGES, strict=False):
                axes.stairs(*_mu(statistics, stage), fill=True, color=COLOURS[0])
                axes.set_yscale("log")
                axes.set_ylim(0.01, 150)
                axes.set_yticks([0.01, 1, 100], ["0.01", "1", "100"])
            epochs = statistics["epochs"]
            x, y = [e["epoch"] for e in epochs], [100 * e["undecided"] for e in epochs]
            row[3].plot(x, y, "-o", ms=2.5, lw=1, color=COLOURS[1])
            row[3].set_ylim(-3, 103)
            row[0].set_ylabel(textwrap.fill(label(name, labels), 14), fontsize=6.5)
        for axes, text in zip(panels[0], ("start", "halfway", "end", "fractional gates (%)"), strict=True):
            axes.set_title(text)
        for axes in panels[:-1].flat:
            axes.tick_params(labelbottom=False)
        for axes in panels[-1, :3]:
            axes.set_xlabel("$\\mu$")
        panels[-1, 3].set_xlabel("epoch")
        page.supylabel("share of gates in a bin (%)", fontsize=7, x=-0.01)
        page.subplots_adjust(hspace=0.25, wspace=0.35)
    return path


def inside(anatomy: Anatomy, path: Path) -> Path:
    """Plot one ticket: kept weights by input pixel, layer densities, dead units, histograms of mu, gates over time."""
    with figure(path):
        page, (pixels, layers, mus, course) = plt.subplots(1, 4, figsize=(6.8, 1.6), constrained_layout=True)
        image = pixels.imshow(anatomy.first, cmap="cividis")
        pixels.set_title("kept first-layer weights\nper input pixel")
        pixels.grid(False)
        pixels.set_xticks([])
        pixels.set_yticks([])
        page.colorbar(image, ax=pixels, shrink=0.8)
        _densities(layers, anatomy)
        for i, stage in enumerate(STAGES):
            mus.stairs(*_mu(anatomy.statistics, stage), color=COLOURS[i], label=stage)
        mus.set_yscale("log")
        mus.set_ylim(0.01, 300)
        mus.set_title("$\\mu$ (% of gates, log)")
        mus.legend(frameon=False, fontsize=5.5)
        epochs = anatomy.statistics["epochs"]
        for i, (key, text) in enumerate((("density", "open, $\\mu > 1/2$"), ("undecided", "$0 < \\mu < 1$"))):
            look: Any = {"marker": MARKERS[i], "ms": 2.5, "lw": 1, "color": COLOURS[i], "label": text}
            course.plot([e["epoch"] for e in epochs], [100 * e[key] for e in epochs], **look)
        course.set_title("gates over epochs (%)")
        course.set_xlabel("epoch")
        course.legend(frameon=False, fontsize=5.5)
    return path


def _densities(axes: Any, anatomy: Anatomy) -> None:
    """Draw the density of each layer, and the number of units that no kept weight reaches."""
    record, sizes = anatomy.record, anatomy.cell.spec.layer_sizes()
    layers, dead = record.layers or {}, record.dead_units or {}
    density = [100 * count.kept / count.total for count in layers.values()]
    axes.bar(range(len(layers)), density, color=COLOURS[0])
    for i, (name, value) in enumerate(zip(layers, density, strict=True)):
        text = f"{value:.1f}\n{dead[name]}/{sizes[i][1]} cut off"
        axes.annotate(text, (i, value), ha="center", va="bottom", fontsize=5)
    axes.set_ylim(0, 1.45 * max(density))
    axes.set_xticks(range(len(layers)), [n.removesuffix(".weight") for n in layers])
    axes.set_title("density (%), units that\nno kept weight reaches")


def by_depth(found: Sequence[Layers], path: Path, demonstration: bool, labels: Labels) -> Path:
    """Plot the sparsity of each layer, from first to last: one panel per density, one line per arm."""
    densities = sorted({f.asked for f in found}, reverse=True)
    arms = list(dict.fromkeys(f.arm for f in found))
    size: Any = {"figsize": (0.4 + 2.2 * len(densities), 2.2), "squeeze": False, "layout": "constrained"}
    with figure(path, demonstration):
        page, panels = plt.subplots(1, len(densities), **size)
        for axes, asked in zip(panels[0], densities, strict=True):
            for f in (f for f in found if f.asked == asked):
                i = arms.index(f.arm)
                band(axes, range(1, len(f.names) + 1), list(f.sparsity.T), i, label(f.arm, labels), line(i))
            axes.axhline(100 * (1 - asked), color="black", lw=0.7, ls=":")
            axes.set_title(f"{100 * (1 - asked):g} % overall")
            axes.set_xlabel("layer, counted from the input")
        panels[0, 0].set_ylabel("sparsity of the layer (%)")
        handles = {text: h for axes in panels[0] for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        legend_outside(page, max(1, len(densities)) + 1, handles.values(), handles.keys())
    return path


def by_head(found: Layers, path: Path, demonstration: bool, labels: Labels) -> Path:
    """Plot the sparsity of queries, keys and values by block: means over seeds and heads, and the range over heads.

    Raises:
        ValueError: the network has no attention heads.
    """
    if found.heads is None:
        raise ValueError(f"{found.arm} has no blocks with attention heads")
    with figure(path, demonstration):
        page, axes = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
        blocks, heads = range(1, found.heads.shape[1] + 1), found.heads.mean(0)
        for i, name in enumerate(("queries", "keys", "values")):
            look: Any = {"color": COLOURS[i], "marker": MARKERS[i], "ms": 3.5, "lw": 1, "label": name}
            axes.plot(blocks, np.nanmean(heads[:, i], -1), **look)
            low, high = np.nanmin(heads[:, i], -1), np.nanmax(heads[:, i], -1)
            axes.fill_between(blocks, low, high, color=COLOURS[i], alpha=0.15, lw=0)
        axes.set_xticks(blocks)
        axes.set_xlabel("block")
        axes.set_ylabel("sparsity (%), range over heads")
        axes.set_title(f"{label(found.arm, labels)}, {100 * (1 - found.asked):g} % overall")
        legend_outside(page, 3)
    return path
