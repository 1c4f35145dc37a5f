"""Time for an image against density: a ticket as a C program, beside dense programs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from crbg.report.figures.style import colour, figure, legend_below, line, log_ticks, marker, ticks

NAMES = {"program": "ticket as a C program", "onnxruntime": "dense, onnxruntime", "dense": "dense, C"}


def latency(times: pd.DataFrame, path: Path) -> Path:
    """Draw microseconds per image against density, one panel for each batch size; dense times are means."""
    with figure(path):
        sizes = sorted(times.batch.unique())
        drawn, panels = plt.subplots(1, len(sizes), figsize=(6.8, 2.2), sharey=True)
        for axes, size in zip(panels, sizes, strict=True):
            mine = times[times.batch == size].sort_values("density")
            for i, (way, name) in enumerate(NAMES.items()):
                each = mine[way] / size
                text = name if size == sizes[0] else None
                if way == "program":
                    axes.plot(mine.density, each, marker(i), ls=line(i), color=colour(i), lw=1, ms=3.5, label=text)
                else:
                    axes.axhline(each.mean(), color=colour(i), lw=1, ls=("--", ":")[i - 1], label=text)
            axes.set_title(f"batch {size:g}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks(axes, list(mine.density), [f"{d:g}" for d in mine.density])
            axes.tick_params(axis="x", labelrotation=45)
            axes.set_xlabel("density")
            log_ticks(axes.yaxis)
        panels[0].set_ylabel("µs per image")
        legend_below(drawn, 3, -0.14)
    return path
