"""Published results, shown next to measured ones in figures. Read from paper/published.yaml and paper/claims.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crbg.errors import CrbgError
from crbg.experiments.config import Config, Experiment
from crbg.report.declared import Declared, parse

if TYPE_CHECKING:  # importing it at run time would be circular: rules import this module
    from crbg.report.claims import Claims

PUBLISHED = Path("paper/published.yaml")


class _Point(Declared):
    """A point of the digitised width sweep; see `width_points`."""

    weights: float
    accuracy: float
    zero: float | None = None
    one: float | None = None


class _File(Declared):
    """The contents of paper/published.yaml."""

    width: list[_Point] = []  # noqa: RUF012 - pydantic copies it
    winners: dict[str, dict[str, dict[float, float]]] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Published:
    """Published results for one experiment.

    points: density, accuracy in % and source. width: points of the width sweep, digitised from its figure.
    winners: accuracies in % by arm and density.
    """

    points: list[tuple[float, float, str]] = field(default_factory=list)
    width: list[dict[str, float]] = field(default_factory=list)
    winners: dict[str, dict[float, float]] = field(default_factory=dict)


def read_published() -> dict[str, Any]:
    """Read paper/published.yaml; return an empty dict if the file does not exist.

    Raises:
        CrbgError: the file is not valid.
    """
    return dict(_read(PUBLISHED.absolute(), PUBLISHED.stat().st_mtime_ns)) if PUBLISHED.exists() else {}


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> dict[str, Any]:
    """Parse the file, which takes longer than judging a rule; it is parsed again only after it has changed."""
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CrbgError(f"{PUBLISHED} is not valid YAML: {' '.join(str(error).split())}") from None
    return parse(_File, {} if raw is None else raw, str(PUBLISHED)).model_dump()


def width_points() -> list[dict[str, float]]:
    """Return the points of the digitised width sweep.

    Each point gives, in %, `weights` relative to LeNet-300-100, `accuracy`, and the share of gates at 0 (`zero`) and at
    1 (`one`).

    Raises:
        CrbgError: the file has no width sweep.
    """
    points = read_published().get("width")
    if not points:
        raise CrbgError(f"{PUBLISHED} has no points under `width`, but a rule of type `width` needs them")
    return list(points)


def of_experiment(claims: Claims, experiment: Experiment, config: Config) -> Published:
    """Collect the published results for an experiment: points of its claims, the width sweep, accuracies by arm."""
    if config.demonstration:
        return Published()
    rules = [(c, r) for c in claims.claims for r in c.rules if getattr(r, "experiment", "") == experiment.name]
    points = [(*point, c.source.split(",")[0]) for c, r in rules if (point := r.point)]
    known = read_published()
    width = known.get("width", []) if any(r.type == "width" for _, r in rules) else []
    return Published(points, width, known.get("winners", {}).get(experiment.name, {}))
