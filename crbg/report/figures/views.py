"""The figure of an experiment, drawn as its `view` says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from crbg.experiments.config import Experiment
from crbg.report.figures import curves, panels
from crbg.report.figures.style import figure
from crbg.report.published import Published
from crbg.report.tables import headline


def draw(rows: pd.DataFrame, experiment: Experiment, path: Path, published: Published, demonstration: bool) -> Path:
    """Draw the headline numbers of an experiment, with what was published about it; `path` has no suffix."""
    mine = headline(rows, experiment.name)
    with figure(path, demonstration):
        match experiment.view:
            case "dots":
                panels.dots(mine, published.winners)
            case "lines":
                curves.lines(mine, experiment)
            case "width":
                curves.width(mine, published.width)
            case "penalties":
                panels.penalties(mine)
            case "cost":
                curves.cost(mine)
            case "winners":
                curves.winners(mine, published.winners)
            case "methods":
                panels.methods(mine)
            case _:
                curves.curve(mine, published.points)
    return path
