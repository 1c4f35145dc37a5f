"""Select the cells (specs with a seed) that a command works on: by experiment or target, `--where`, `--seeds` or job.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from crbg.errors import CrbgError, suggest
from crbg.experiments.experiment import Cell, Config, Experiment, Key
from crbg.experiments.selection import varying
from crbg.experiments.spec import Spec


def choose_experiments(config: Config, name: str | None) -> list[Experiment]:
    """Return the experiment `name`, or the experiments of the target `name`; all experiments if `name` is None.

    If an experiment and a target have the same name, the experiment is returned.

    Raises:
        CrbgError: no experiment or target has this name.
    """
    targets = config.targets()
    if name in targets and name not in config.experiments:
        return targets[name]
    return [config.experiment(name)] if name else list(config.experiments.values())


def choose_cells(
    config: Config,
    name: str | None = None,
    where: Iterable[str] = (),
    seeds: Sequence[int] | None = None,
    job: str | None = None,
) -> list[Cell]:
    """Return the cells of an experiment or target that match every condition KEY=VALUE.

    `seeds` replaces the configured seeds. If `job` is given, the cells of this job are returned, and `where` and
    `seeds` are ignored. A run that several experiments share is listed once for each of them.

    Raises:
        CrbgError: a name, key or value does not exist (the message suggests the nearest one), or a seed is negative.
    """
    chosen = choose_experiments(config, name)
    if job:
        jobs = {j.name: j for e in chosen for j in e.jobs()}
        if job not in jobs:
            raise CrbgError(f"no job {job!r}: {suggest(job, jobs)}; did the configuration change after planning?")
        return list(jobs[job].cells)
    cells = [c for e in chosen for c in e.cells]
    for condition in where:
        cells = _fulfilling(cells, condition)
    if seeds and min(seeds) < 0:
        raise CrbgError(f"--seeds {min(seeds)}: seeds are whole numbers >= 0")
    return _with_seeds(cells, seeds) if seeds else cells


def _with_seeds(cells: Iterable[Cell], seeds: Sequence[int]) -> list[Cell]:
    """Return one cell for each given seed and each distinct spec of an arm."""
    first = {(c.experiment, c.arm, c.spec.digest()): c for c in cells}
    return [replace(c, seed=s) for c in first.values() for s in seeds]


def settings(config: Config, cells: Iterable[Cell]) -> dict[Key, str]:
    """Map the key of each cell to the settings in which it differs from the other runs of its arm.

    The settings are written in the form that `--where` accepts. The density is omitted because the name of a run
    contains it.
    """
    varied: dict[tuple[str, str], list[str]] = {}
    out = {}
    for c in cells:
        if (c.experiment, c.arm) not in varied:
            specs = [o.spec for o in config.experiment(c.experiment).cells if o.arm == c.arm]
            varied[c.experiment, c.arm] = [k for k in varying(c.spec, specs) if k != "density"]
        out[c.key] = " ".join(f"{k}={_setting(c.spec, k)}" for k in varied[c.experiment, c.arm])
    return out


_ABSENT = object()  # the value of an option or model argument that a spec does not have


def _setting(spec: Spec, key: str) -> Any:
    """Return a field of a spec, or one of its options or model arguments, given by a dotted name."""
    head, _, name = key.partition(".")
    if head == "model_args" and name:
        return spec.model_args.get(name)
    if head == "options":
        return vars(spec.resolved()).get(name, _ABSENT)
    return getattr(spec, key) if key in Spec.__dataclass_fields__ else _ABSENT


def _fulfilling(cells: list[Cell], condition: str) -> list[Cell]:
    """Return the cells that match KEY=VALUE. A cell whose method lacks the option KEY does not match."""
    key, eq, text = condition.partition("=")
    if not eq:
        raise CrbgError(f"--where {condition}: write KEY=VALUE, e.g. density=0.05")
    values = [_value(c, key) for c in cells]
    unset = (_ABSENT, None) if key.startswith("model_args.") else (_ABSENT,)
    if key == "seed":
        raise CrbgError("--where seed: use `--seeds` to choose seeds")
    if all(value in unset for value in values):
        raise CrbgError(f"--where {key}: {_nearest(cells, key)}")
    if keep := [c for c, value in zip(cells, values, strict=True) if _matches(value, text)]:
        return keep
    seen = sorted({str(value) for value in values if value is not _ABSENT})
    raise CrbgError(f"--where {condition}: no run matches; {key} is one of {', '.join(seen)}")


def _value(cell: Cell, key: str) -> Any:
    if key == "arm":
        return cell.arm
    return cell.spec.digest() if key == "digest" else _setting(cell.spec, key)


def _nearest(cells: Iterable[Cell], key: str) -> str:
    """Return a hint for a key that no cell has."""
    specs = {c.spec.digest(): c.spec for c in cells}.values()
    options = {o for s in specs for o in vars(s.resolved())}
    if key in options:
        return f"this is an option of the method; write options.{key}"
    dotted = [*(f"options.{o}" for o in options), *(f"model_args.{a}" for s in specs for a in s.model_args)]
    fields = ["arm", "digest", *Spec.__dataclass_fields__]
    return suggest(key, {d for d in dotted if d.partition(".")[0] == key.partition(".")[0]} or fields)


def _matches(value: Any, text: str) -> bool:
    if isinstance(value, float):
        try:
            return math.isclose(value, float(text))
        except ValueError:
            return False
    return value is not _ABSENT and str(value) == text
