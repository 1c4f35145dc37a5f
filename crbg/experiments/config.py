"""config.yaml -> experiments -> cells. A cell is one spec with one seed, under the experiment and arm it serves.

No torch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from crbg.errors import CrbgError, suggest
from crbg.experiments.spec import Spec, spec_from

TOP = {
    "about": str, "data_dir": (str, type(None)), "results": str, "paper": str, "reuse": str, "threads": int,
    "device": str, "gpu_share": int, "save_every": int, "seeds_at_most": int, "points_at_most": int, "jobs_at_most": int,
    "scale": dict, "experiments": dict,
}  # fmt: skip
EXPERIMENT = {
    "about": str, "targets": list, "role": str, "seeds": list, "cells_per_job": int, "tuned_by": (str, list), "against": str,
    "groups": dict, "base": dict, "arms": dict, "gpu": int, "nodes": int, "view": str, "x": str,
}  # fmt: skip
ARM = {"about": str, "method": str, "set": dict, "grid": (dict, list), "seeds": list}
ROLES = ("tune", "ablation", "main")
VIEWS = ("curve", "methods", "winners", "cost", "dots", "lines", "width", "penalties")

COMMITTED = Path("paper/selected.yaml")  # what the selection rule chose, and what may be evaluated


@dataclass(frozen=True)
class Cell:
    """One run to do: a spec with a seed, and where it belongs."""

    experiment: str
    arm: str
    spec: Spec
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """What makes a run unique, whatever experiments share it."""
        return self.spec.digest(), self.seed


@dataclass(frozen=True)
class Job:
    """Cells that one process does one after the other."""

    name: str
    experiment: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Experiment:
    """A group of arms with one purpose. role: `tune` and `ablation` read validation only; `main` is evaluated on test.

    `against` names an experiment whose arms of the same names an ablation is compared with, on validation. `view` says
    how its figure is drawn, `x` which field of the spec runs along the axis of a `lines` figure. `gpu` is the number of
    GPUs that share the batches of one run on each of `nodes` nodes; 0 asks for none.
    """

    name: str
    about: str
    role: str
    targets: tuple[str, ...]
    cells_per_job: int
    tuned_by: tuple[str, ...]
    chosen: frozenset[str]  # arms for which paper/selected.yaml has a choice
    groups: Mapping[float | None, tuple[float | None, ...]]
    cells: tuple[Cell, ...]
    gpu: int
    nodes: int
    against: str | None
    view: str
    x: str

    def jobs(self) -> list[Job]:
        """Cut the cells into jobs. The cut depends on the config alone, never on what is done already."""
        unique = list({c.key: c for c in self.cells}.values())
        parts = [unique[i : i + self.cells_per_job] for i in range(0, len(unique), self.cells_per_job)]
        out = []
        for i, part in enumerate(parts):
            tag = hashlib.sha256(repr([c.key for c in part]).encode()).hexdigest()[:8]
            out.append(Job(f"{self.name}-{i:03d}-{tag}", self.name, tuple(part)))
        return out


@dataclass(frozen=True)
class Config:
    """The whole of config.yaml, checked."""

    files: tuple[str, ...]
    results: Path
    paper: Path
    data_dir: str | None
    reuse: str
    threads: int
    device: str
    experiments: Mapping[str, Experiment]
    demonstration: bool
    gpu_share: int  # processes that may work on one GPU at a time
    save_every: int  # seconds between two checkpoints of a run

    def experiment(self, name: str) -> Experiment:
        """Look an experiment up by name."""
        if name not in self.experiments:
            raise CrbgError(f"no experiment {name!r} in {', '.join(self.files)}: {suggest(name, self.experiments)}")
        return self.experiments[name]

    def unchosen(self, cells: Iterable[Cell]) -> list[str]:
        """Name the arms among these cells that a tuning experiment tunes, but for which nothing has been chosen yet."""
        tuned = {
            e.name: {c.arm for t in e.tuned_by for c in self.experiments[t].cells} for e in self.experiments.values()
        }
        return sorted(
            {
                f"{c.experiment}.{c.arm}"
                for c in cells
                if c.arm in tuned[c.experiment] - self.experiments[c.experiment].chosen
            }
        )

    def targets(self) -> dict[str, list[Experiment]]:
        """Group the experiments by the targets they serve; `all` has every one."""
        out: dict[str, list[Experiment]] = {"all": list(self.experiments.values())}
        for e in self.experiments.values():
            for t in e.targets:
                out.setdefault(t, []).append(e)
        return out


def read(paths: Sequence[str | Path], settings: Iterable[str] = ()) -> Config:
    """Read configuration files, later ones laid over earlier ones, then `key=value` settings; check everything.

    Raises:
        CrbgError: names every problem found, with its place, before anything runs.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            loaded = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise CrbgError(f"cannot read the configuration {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CrbgError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, dict):
            raise CrbgError(f"{path} must be a mapping of keys, not {type(loaded).__name__}")
        merged = _lay_over(merged, loaded)
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in TOP or key in ("experiments", "scale"):
            raise CrbgError(f"--set {setting}: {suggest(key, (k for k in TOP if k not in ('experiments', 'scale')))}")
        try:
            merged[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise CrbgError(f"--set {setting}: {value!r} is not a value that YAML can read") from None
    return check(merged, tuple(map(str, paths)))


def check(raw: Mapping[str, Any], files: tuple[str, ...]) -> Config:
    """Turn plain values into a Config, or raise one error that lists all that is wrong."""
    place = ", ".join(files)
    problems = list(_wrong(raw, TOP, place))
    if problems:
        raise CrbgError("\n".join(problems))
    for key in ("seeds_at_most", "points_at_most", "jobs_at_most", "threads", "gpu_share", "save_every"):
        if raw.get(key, 1) < 1:
            problems.append(f"{place}: {key} = {raw[key]} must be at least 1")
    if problems:
        raise CrbgError("\n".join(problems))
    if raw.get("reuse", "recorded") not in ("recorded", "never"):
        problems.append(f"{place}: reuse is 'recorded' or 'never', not {raw['reuse']!r}")
    paper = Path(os.fspath(raw.get("paper", "paper")))
    selected = read_selected(choices(paper) if not raw.get("scale") else COMMITTED)
    experiments = {}
    for name, body in (raw.get("experiments") or {}).items():
        try:
            experiments[name] = _experiment(name, body, raw, selected.get(name, {}))
        except CrbgError as error:
            problems += [f"{place}: {line}" for line in str(error).split("\n")]
    for e in experiments.values():
        for key, other in (*(("tuned_by", t) for t in e.tuned_by), ("against", e.against)):
            if other and other not in experiments:
                problems.append(f"{place}: experiments.{e.name}.{key}: {suggest(other, experiments)}")
    if not experiments and not problems:
        problems.append(f"{place}: there are no experiments")
    if problems:
        raise CrbgError("\n".join(problems))
    return Config(
        files, Path(raw.get("results", "results")), paper, raw.get("data_dir"), raw.get("reuse", "recorded"),
        int(raw.get("threads", 1)), raw.get("device", "auto"), experiments, bool(raw.get("scale")),
        int(raw.get("gpu_share", 1)), int(raw.get("save_every", 60)),
    )  # fmt: skip


def choices(paper: Path) -> Path:
    """Name the file of choices that a paper folder goes by: its own, or the committed one where it has none."""
    own = paper / COMMITTED.name
    return own if own.exists() else COMMITTED


def read_selected(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Read the committed choices of the selection rule: experiment -> arm -> [{densities, set, ...}]."""
    if not path.exists():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text()) or {}
        if not isinstance(loaded, dict):
            raise CrbgError(f"{path} must be a mapping; make it again with `crbg select`")
        for arms in (arms for name, arms in loaded.items() if name != "evaluate"):
            for choice in (choice for choices in arms.values() for choice in choices):
                _expand(choice["set"])
                list(choice["densities"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise CrbgError(
            f"{path} is damaged ({type(error).__name__}: {error}); make it again with `crbg select`"
        ) from None
    return dict(loaded)


def _experiment(name: str, body: Any, raw: Mapping[str, Any], selected: Mapping[str, Any]) -> Experiment:
    place = f"experiments.{name}"
    if not isinstance(body, dict):
        raise CrbgError(f"{place} must be a mapping")
    problems = list(_wrong(body, EXPERIMENT, place))
    if problems:
        raise CrbgError("\n".join(problems))
    role = body.get("role", "ablation")
    if role not in ROLES:
        problems.append(f"{place}.role: unknown role {role!r}: {suggest(str(role), ROLES)}")
    view = body.get("view", "curve" if role == "main" else "dots")
    if view not in VIEWS:
        problems.append(f"{place}.view: {suggest(view, VIEWS)}")
    seeds = body.get("seeds", [0])
    problems += _wrong_seeds(seeds, place)
    if not body.get("arms"):
        problems.append(f"{place} has no arms")
    try:
        groups = {_density(k): tuple(_density(d) for d in v) for k, v in (body.get("groups") or {}).items()}
    except (TypeError, ValueError):
        problems.append(f"{place}.groups must map a tuned density to a list of densities, not {body['groups']!r}")
    if problems:
        raise CrbgError("\n".join(problems))
    scale = raw.get("scale") or {}
    cells: list[Cell] = []
    for arm, arm_body in body["arms"].items():
        where = f"{place}.arms.{arm}"
        try:
            problems_here = (
                list(_wrong(arm_body, ARM, where)) if isinstance(arm_body, dict) else [f"{where} must be a mapping"]
            )
            if not problems_here:
                mine = arm_body.get("seeds", seeds)
                problems_here = list(_wrong_seeds(mine, where))
            if problems_here:
                raise CrbgError("\n".join(problems_here))
            specs = list(_points(body.get("base") or {}, arm_body, where, scale, selected.get(arm, [])))
        except CrbgError as error:
            problems.append(str(error))
            continue
        specs = _thin(specs, raw.get("points_at_most"))
        digests = [s.digest() for s in specs]
        if len(set(digests)) < len(digests) and not scale:
            problems.append(f"{where}: two points of the grid are the same run")
        mine = mine[: raw.get("seeds_at_most", len(mine))]
        cells += [Cell(name, str(arm), s, seed) for s in {s.digest(): s for s in specs}.values() for seed in mine]
    x = str(body.get("x", "density"))
    axes = {f for c in cells for f in (*vars(c.spec), *(f"options.{o}" for o in vars(c.spec.resolved())))}
    if cells and x not in axes:
        problems.append(f"{place}.x: no arm has {x!r}: {suggest(x, axes)}")
    if problems:
        raise CrbgError("\n".join(problems))
    gpu, nodes = int(body.get("gpu", 0)), int(body.get("nodes", 1))
    if gpu < 0 or nodes < 1 or (nodes > 1 and gpu < 2):
        raise CrbgError(
            f"{place}: gpu is at least 0 and nodes at least 1, and several nodes need at least `gpu: 2` on each"
        )
    few = min(len(seeds), raw.get("seeds_at_most", len(seeds)))
    size = max(1, int(body.get("cells_per_job", few)), math.ceil(len(cells) / raw.get("jobs_at_most", len(cells))))
    targets, about, tuned_by = tuple(body.get("targets", ())), body.get("about", ""), body.get("tuned_by") or ()
    tuned_by = (tuned_by,) if isinstance(tuned_by, str) else tuple(map(str, tuned_by))
    return Experiment(
        name, about, role, targets, size, tuned_by, frozenset(selected), groups, tuple(cells), gpu, nodes, body.get("against"), view,
        body.get("x", "density"),
    )  # fmt: skip


def _wrong_seeds(seeds: list[Any], place: str) -> Iterator[str]:
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds):
        yield f"{place}.seeds must be a list of whole numbers >= 0, not {seeds!r}"
    elif len(set(seeds)) < len(seeds):
        yield f"{place}.seeds names a seed twice: {seeds!r}"


def _density(value: Any) -> float | None:
    """Read a density of `groups`; null stands for runs without one, as those of dense networks."""
    return None if value is None else float(value)


def _points(
    base: Mapping[str, Any], arm: Mapping[str, Any], place: str, scale: Mapping[str, Any], chosen: list[dict[str, Any]]
) -> Iterator[Spec]:
    fixed = _lay_over(_expand(base), _expand(arm.get("set") or {}))
    fixed["method"] = arm.get("method", fixed.get("method"))
    if fixed["method"] is None:
        raise CrbgError(f"{place}.method is missing")
    grids = arm.get("grid") or {}
    points: list[dict[str, Any]] = []
    for grid in grids if isinstance(grids, list) else [grids]:  # a list of grids is their union
        if not isinstance(grid, dict):
            raise CrbgError(f"{place}.grid must be a mapping of lists, or a list of such mappings, not {grid!r} in it")
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise CrbgError(f"{place}.grid.{key} must be a list of at least one value, not {values!r}")
        points += [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    for point in points:
        values = _lay_over(fixed, _expand(point))
        for choice in chosen:
            if values.get("density") in choice["densities"]:
                values = _lay_over(values, _expand(choice["set"]))
        without_search = values.get("epochs") == 0
        values = _lay_over(values, {k: v for k, v in scale.items() if not (k == "epochs" and without_search)})
        yield spec_from(values, place)


def _thin(specs: list[Spec], most: int | None) -> list[Spec]:
    """Keep at most so many points of each density, evenly spread over the grid; for demonstrations."""
    if not most:
        return specs
    by_density: dict[float | None, list[Spec]] = {}
    for s in specs:
        by_density.setdefault(s.density, []).append(s)
    return [
        group[i * len(group) // min(most, len(group))]
        for group in by_density.values()
        for i in range(min(most, len(group)))
    ]


def _expand(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"options.lr": 1} into {"options": {"lr": 1}}."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, rest = str(key).partition(".")
        out = _lay_over(out, {head: {rest: value}} if rest else {key: value})
    return out


def _lay_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(under)
    for key, value in over.items():
        both = isinstance(out.get(key), Mapping) and isinstance(value, Mapping)
        out[key] = _lay_over(out[key], value) if both else value
    return out


def _wrong(body: Mapping[str, Any], allowed: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, value in body.items():
        if key not in allowed:
            yield f"{place}: unknown key {key!r}: {suggest(str(key), allowed)}"
        elif not isinstance(value, allowed[key]) or (isinstance(value, bool) and allowed[key] is int):
            wanted = allowed[key] if isinstance(allowed[key], tuple) else (allowed[key],)
            yield f"{place}: {key} = {value!r} must be {' or '.join(t.__name__ for t in wanted)}"


def with_seed(cells: Iterable[Cell], seeds: Iterable[int]) -> list[Cell]:
    """Give each distinct spec of the cells the seeds asked for by hand."""
    wanted = list(seeds)
    first = {c.spec.digest(): c for c in cells}
    return [replace(c, seed=s) for c in first.values() for s in wanted]
