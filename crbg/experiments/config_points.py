"""Build the specs of an arm from bases, grids, chosen settings and the override of a demonstration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crbg.errors import CrbgError, suggest
from crbg.experiments.config_files import expand, lay_over
from crbg.experiments.spec import Spec, spec_from


@dataclass(frozen=True)
class Common:
    """Parts of the configuration that apply to all arms.

    Attributes:
        override: Fields that override those of every run.
        points_at_most: Maximum number of grid points.
        stand_ins: For runs on some data sets, the data set that replaces it, instead of the one in `override`.
    """

    bases: Mapping[str, Any]
    override: Mapping[str, Any]
    points_at_most: int | None
    stand_ins: Mapping[str, str]


def resolve(
    body: Mapping[str, Any], bases: Mapping[str, Any], place: str, chain: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Merge `body` with the bases that it extends. Later bases override earlier ones; `body` overrides all of them.

    Raises:
        CrbgError: a base is unknown, or extends itself.
    """
    names = body.get("extends") or []
    out: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        if name in chain:
            raise CrbgError(f"bases.{name} extends itself: {' -> '.join((*chain, name))}")
        if name not in bases:
            known = suggest(str(name), bases) if bases else "there are no bases"
            raise CrbgError(f"{place}: unknown base {name!r}: {known}")
        out = lay_over(out, resolve(bases[name], bases, f"bases.{name}", (*chain, name)))
    return lay_over(out, expand({k: v for k, v in body.items() if k != "extends"}))


def specs(
    base: Mapping[str, Any], arm: Mapping[str, Any], place: str, chosen: Sequence[Mapping[str, Any]], common: Common
) -> list[Spec]:
    """Build the spec of each grid point of an arm.

    Fields come from `base`, `set`, the grid, the chosen settings and the override; later ones override earlier ones.

    Raises:
        CrbgError: a point is invalid, or two points define the same run; the message begins with `place`.
    """
    fixed = lay_over(base, resolve(arm.get("set") or {}, common.bases, f"{place}.set"))
    fixed["method"] = arm.get("method", fixed.get("method"))
    if fixed["method"] is None:
        raise CrbgError(f"{place}.method is missing")
    out, problems = [], []
    for point in grid_points(arm.get("grid") or {}, place):
        try:
            out.append(spec_from(_values(lay_over(fixed, expand(point)), chosen, common), place))
        except CrbgError as error:
            problems.append(str(error))
    if problems:
        raise CrbgError("\n".join(dict.fromkeys(problems)))
    out = _thin(out, common.points_at_most)
    if len({s.digest() for s in out}) < len(out) and not common.override:
        raise CrbgError(f"{place}: two points of the grid define the same run")
    return list({s.digest(): s for s in out}.values())


def grid_points(grids: Any, place: str) -> Iterator[dict[str, Any]]:
    """Yield the points of a grid: all combinations of its lists, or for a list of grids, the points of each grid.

    Raises:
        CrbgError: a grid is not a mapping of non-empty lists.
    """
    for grid in grids if isinstance(grids, list) else [grids]:
        if not isinstance(grid, dict):
            raise CrbgError(
                f"{place}.grid must be a mapping of lists or a list of such mappings; {grid!r} is not a mapping"
            )
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise CrbgError(f"{place}.grid.{key} must be a list of at least one value, not {values!r}")
        for point in itertools.product(*grid.values()):
            yield dict(zip(grid, point, strict=True))


def _values(values: dict[str, Any], chosen: Sequence[Mapping[str, Any]], common: Common) -> dict[str, Any]:
    """Apply the settings chosen for the density of a grid point to its values, then the override."""
    for choice in chosen:
        if values.get("density") in choice["densities"]:
            values = lay_over(values, expand(choice["set"]))
    override = {k: v for k, v in common.override.items() if not (k == "epochs" and values.get("epochs") == 0)}
    if stand_in := common.stand_ins.get(str(values.get("data"))):
        override["data"] = stand_in
    return lay_over(values, override)


def _thin(points: list[Spec], most: int | None) -> list[Spec]:
    """Keep at most `most` points for each density, evenly spread over the grid; used for demonstrations."""
    if not most:
        return points
    by_density: dict[float | None, list[Spec]] = {}
    for s in points:
        by_density.setdefault(s.density, []).append(s)
    return [
        group[i * len(group) // min(most, len(group))]
        for group in by_density.values()
        for i in range(min(most, len(group)))
    ]
