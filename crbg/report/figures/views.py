"""The figure of an experiment; its field `view` selects the kind of figure."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from crbg.experiments.config import Experiment
from crbg.report.figures import curves, panels, theory
from crbg.report.figures.style import figure
from crbg.report.published import Published
from crbg.report.tables import headline

MOST_PANELS = 3  # with more densities, winning tickets are drawn as curves


def draw(rows: pd.DataFrame, experiment: Experiment, path: Path, published: Published, demonstration: bool) -> Path:
    """Draw the headline numbers of an experiment together with published results; `path` has no suffix."""
    mine, labels = headline(rows, experiment.name), experiment.labels
    with figure(path, demonstration):
        match experiment.view:
            case "dots":
                panels.dots(mine, published.winners, labels)
            case "lines":
                curves.lines(mine, experiment, labels)
            case "width":
                curves.width(mine, published.width, labels)
            case "bytes":
                curves.size(mine, labels)
            case "representation":
                theory.representation(mine, labels)
            case "penalties":
                panels.penalties(mine, labels)
            case "cost":
                curves.cost(mine, labels)
            case "winners":
                # An arm with several settings at one density has no single accuracy there. The table lists it.
                mine = mine.groupby("arm", sort=False).filter(lambda g: g.groupby("asked").setting.nunique().max() == 1)
                if mine.asked[mine.asked < 1].nunique() > MOST_PANELS:
                    curves.winners(mine, published.winners, labels)
                else:
                    panels.methods(mine, published.winners, labels, seconds=True)
            case "methods":
                panels.methods(mine, published.winners, labels)
            case "controls":
                panels.controls(mine, labels)
            case _:
                curves.curve(mine, published.points, labels)
    return path
