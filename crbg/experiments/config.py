"""Read config.yaml into experiments and their cells (see `crbg.experiments.experiment`).

This module does not import torch. Without pydantic, keys and types in the files are not checked; all else works.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crbg.data.datasets import DATA, set_root
from crbg.data.metrics import ACCURACY
from crbg.errors import CrbgError, suggest
from crbg.experiments import config_points
from crbg.experiments.choices import COMMITTED, choices, read_selected
from crbg.experiments.config_files import SCALARS, Merged, merge, path_of
from crbg.experiments.experiment import Cell, Config, Experiment, Job
from crbg.experiments.spec import Spec

if TYPE_CHECKING:
    from crbg.experiments.config_models import Problem

__all__ = [
    "SCALARS",
    "Cell",
    "Config",
    "Experiment",
    "Job",
    "check",
    "choices",
    "read",
    "read_data_dir",
    "read_selected",
]


def read(paths: Sequence[str | Path], settings: Iterable[str] = ()) -> Config:
    """Read and check configuration files. Later files override earlier ones; `key=value` settings override files.

    Raises:
        CrbgError: the configuration has problems; the message lists all of them and where they are.
    """
    merged = merge(paths, settings)
    return check(merged.values, tuple(map(str, paths)), merged)


def read_data_dir(paths: Sequence[str | Path], settings: Iterable[str] = ()) -> str | None:
    """Read only `data_dir` from configuration files, whose experiments may name a data set that does not exist yet."""
    return _data_dir(merge(paths, settings).values, ", ".join(map(str, paths)))


def check(raw: Mapping[str, Any], files: tuple[str, ...], merged: Merged | None = None) -> Config:
    """Build a Config from plain values. `merged` contains the file from which each value was read.

    The data root of this process is set to `data_dir`, because specs look up their data sets there.

    Raises:
        CrbgError: the values have problems; the message lists one on each line.
    """
    origin, place = merged or Merged(), ", ".join(files)
    shape = _wrong_shape(raw)
    problems = [f"{origin.place(w.loc, place)}: {w.text}" for w in shape or ()]
    if any(w.loc[0] != "experiments" or len(w.loc) == 1 for w in shape or ()):
        raise CrbgError("\n".join(problems))
    # Malformed experiments and arms are skipped, so that the values of the others are still checked.
    broken = {(w.loc[1], w.loc[3] if len(w.loc) > 3 and w.loc[2] == "arms" else "") for w in shape or ()}
    set_root(_data_dir(raw, place))
    try:
        experiments = _experiments(raw, broken, origin, place, problems)
        if problems:
            raise CrbgError("\n".join(problems))
        return _config(raw, files, place, experiments)
    except (TypeError, AttributeError, KeyError) as error:
        if shape is not None:
            raise
        text = f"{place}: the configuration is malformed ({error}); install pydantic to see the exact place"
        raise CrbgError(text) from None


def _config(raw: Mapping[str, Any], files: tuple[str, ...], place: str, experiments: dict[str, Experiment]) -> Config:
    paths = {k: path_of(raw.get(k) or k, f"{place}: {k}") for k in ("results", "paper")}
    if unknown := {n for pair in (raw.get("stand_ins") or {}).items() for n in pair} - {*DATA}:
        raise CrbgError(f"{place}: stand_ins: unknown data set {min(unknown)!r}: {suggest(min(unknown), DATA)}")
    if raw.get("stand_ins") and not raw.get("override"):
        raise CrbgError(f"{place}: stand_ins replaces data sets in a demonstration only; add `override`")
    return Config(
        files=files,
        results=Path(paths["results"]),
        paper=Path(paths["paper"]),
        data_dir=_data_dir(raw, place),
        reuse=raw.get("reuse", "recorded"),
        threads=raw.get("threads", 1),
        device=raw.get("device", "auto"),
        experiments=experiments,
        demonstration=bool(raw.get("override")),
        gpu_share=raw.get("gpu_share", 1),
        save_every=raw.get("save_every", 60),
        labels=raw.get("labels") or {},
        robustness=raw.get("robustness") or {},
    )


def _data_dir(raw: Mapping[str, Any], place: str) -> str | None:
    given = raw.get("data_dir")
    return path_of(str(given), f"{place}: data_dir") if given else None


def _experiments(
    raw: Mapping[str, Any], broken: set[tuple[str, str]], origin: Merged, place: str, problems: list[str]
) -> dict[str, Experiment]:
    """Build the experiments in the configured order, and append the problems found to `problems`."""
    paper = Path(path_of(raw.get("paper") or "paper", f"{place}: paper"))
    selected = read_selected(choices(paper) if not raw.get("override") else COMMITTED)
    bodies, out = raw.get("experiments") or {}, {}
    for name in _ordered(bodies, raw.get("order") or [], place):
        given = bodies[name].get("arms") or {} if (name, "") not in broken else {}
        arms = {arm: body for arm, body in given.items() if (name, arm) not in broken}
        if not arms and any(name == e for e, _ in broken):
            continue
        try:
            out[name] = _experiment(name, {**bodies[name], "arms": arms}, raw, selected.get(name, {}))
            _look_up(out[name], bodies)
        except CrbgError as error:
            problems += [f"{origin.place(('experiments', name), place)}: {line}" for line in str(error).split("\n")]
    if not bodies and not problems:
        problems.append(f"{place}: there are no experiments")
    return out


def _look_up(e: Experiment, names: Iterable[str]) -> None:
    """Raise an error if `tuned_by` or `against` names an experiment that does not exist."""
    for key, other in (*(("tuned_by", t) for t in e.tuned_by), ("against", e.against)):
        if other and other not in names:
            raise CrbgError(f"experiments.{e.name}.{key}: unknown experiment {other!r}: {suggest(other, names)}")


def _wrong_shape(raw: Mapping[str, Any]) -> list[Problem] | None:
    """Check keys and types against the pydantic models; return None if pydantic is not installed."""
    try:
        from crbg.experiments import config_models
    except ImportError as error:
        if error.name and not error.name.startswith("pydantic"):
            raise
        print("crbg: pydantic is not installed: keys and types of the configuration are not checked", file=sys.stderr)
        return None
    return list(config_models.problems(raw))


def _ordered(names: Iterable[str], order: Sequence[str], place: str) -> list[str]:
    """Return the experiment names: first those in `order`, then the others in their original order."""
    names = list(names)
    if unknown := [name for name in order if name not in names]:
        raise CrbgError("\n".join(f"{place}: order: unknown experiment {n!r}: {suggest(n, names)}" for n in unknown))
    return [*dict.fromkeys(order), *(name for name in names if name not in order)]


def _experiment(name: str, body: Mapping[str, Any], raw: Mapping[str, Any], selected: Mapping[str, Any]) -> Experiment:
    """Build one experiment. An error lists the problems of all its arms."""
    place = f"experiments.{name}"
    arms, seeds = body["arms"], body.get("seeds", [0])
    if not arms:
        raise CrbgError(f"{place} has no arms")
    cells = _cells(name, body, raw, selected)
    x = body.get("x", "density")
    names = [f.name for f in fields(Spec)]
    axes = {f for c in cells for f in (*names, *(f"options.{o}" for o in vars(c.spec.resolved())))}
    if cells and x not in axes:
        raise CrbgError(f"{place}.x: no arm has a field {x!r}: {suggest(x, axes)}")
    metrics = {c.spec.metric.key for c in cells}
    if len(metrics) > 1:
        raise CrbgError(f"{place}: the metrics of its arms differ: {', '.join(sorted(metrics))}; split the experiment")
    if metrics - {ACCURACY.key} and body.get("view", "dots") not in ("curve", "dots", "representation"):
        raise CrbgError(
            f"{place}.view: only `curve`, `dots` and `representation` show {', '.join(metrics)}, not {body['view']!r}"
        )
    gpu, nodes, role = body.get("gpu", 0), body.get("nodes", 1), body.get("role", "ablation")
    if nodes > 1 and gpu < 2:
        raise CrbgError(f"{place}: runs on several nodes need `gpu: 2` or more")
    few = min(len(seeds), raw.get("seeds_at_most") or len(seeds))
    size = max(body.get("cells_per_job") or few, math.ceil(len(cells) / (raw.get("jobs_at_most") or len(cells))))
    tuned_by = body.get("tuned_by") or ()
    groups = {_density(k): tuple(map(_density, v)) for k, v in (body.get("groups") or {}).items()}
    if role == "tune" and not groups:
        groups = {c.spec.density: (c.spec.density,) for c in cells}
    return Experiment(
        name=name,
        about=body.get("about", ""),
        role=role,
        targets=tuple(body.get("targets", ())),
        cells_per_job=size,
        tuned_by=(tuned_by,) if isinstance(tuned_by, str) else tuple(tuned_by),
        chosen=frozenset(selected),
        groups=groups,
        cells=tuple(cells),
        gpu=gpu,
        nodes=nodes,
        against=body.get("against"),
        view=body.get("view") or ("curve" if role == "main" else "dots"),
        x=x,
        labels={**(raw.get("labels") or {}), **{a: v["label"] for a, v in arms.items() if v.get("label")}},
    )


def _cells(name: str, body: Mapping[str, Any], raw: Mapping[str, Any], selected: Mapping[str, Any]) -> list[Cell]:
    place, bases, cells, problems = f"experiments.{name}", raw.get("bases") or {}, [], []
    override = config_points.resolve(raw.get("override") or {}, bases, "override")
    common = config_points.Common(bases, override, raw.get("points_at_most"), raw.get("stand_ins") or {})
    base = config_points.resolve(body.get("base") or {}, bases, f"{place}.base")
    for arm, arm_body in body["arms"].items():
        try:
            specs = config_points.specs(base, arm_body, f"{place}.arms.{arm}", selected.get(arm, []), common)
        except CrbgError as error:
            problems.append(str(error))
            continue
        seeds = arm_body.get("seeds") or body.get("seeds", [0])
        cells += [Cell(name, arm, s, seed) for s in specs for seed in seeds[: raw.get("seeds_at_most") or len(seeds)]]
    if problems:
        raise CrbgError("\n".join(problems))
    return cells


def _density(value: Any) -> float | None:
    """Convert a density of `groups`. None means runs without a density, such as those of dense networks."""
    return None if value is None else float(value)
