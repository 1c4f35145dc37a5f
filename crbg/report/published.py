"""Published results that stand beside measured ones in figures, from paper/published.yaml and paper/claims.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crbg.errors import CrbgError
from crbg.experiments.config import Config, Experiment

if TYPE_CHECKING:  # rules read the width sweep from here
    from crbg.report.claims import Claims

PUBLISHED = Path("paper/published.yaml")


@dataclass(frozen=True)
class Published:
    """What was published about one experiment.

    points: density, accuracy in % and source. width: points of the width sweep, digitised from its figure.
    winners: accuracies in % by arm and density.
    """

    points: list[tuple[float, float, str]] = field(default_factory=list)
    width: list[dict[str, float]] = field(default_factory=list)
    winners: dict[str, dict[float, float]] = field(default_factory=dict)


def read_published() -> dict[str, Any]:
    """Read paper/published.yaml; a project without this file has published nothing."""
    return dict(yaml.safe_load(PUBLISHED.read_text())) if PUBLISHED.exists() else {}


def width_points() -> list[dict[str, float]]:
    """Give the digitised width sweep: `weights` in % of LeNet-300-100, `accuracy`, gates at `zero` and `one` in %.

    Raises:
        CrbgError: the file has no width sweep.
    """
    points = read_published().get("width")
    if not points:
        raise CrbgError(f"{PUBLISHED} has no points under `width`, which a rule of type width compares with")
    return list(points)


def of_experiment(claims: Claims, experiment: Experiment, config: Config) -> Published:
    """Collect what was published about an experiment: the points of its claims, the width sweep, accuracies by arm."""
    if config.demonstration:
        return Published()
    rules = [(c, r) for c in claims.claims for r in c.rules if getattr(r, "experiment", "") == experiment.name]
    points = [(*point, c.source.split(",")[0]) for c, r in rules if (point := r.point)]
    known = read_published()
    width = known.get("width", []) if any(r.type == "width" for _, r in rules) else []
    return Published(points, width, known.get("winners", {}).get(experiment.name, {}))
