"""The selection rule, which chooses settings from tuning records and writes them to paper/selected.yaml.

For each arm and tuned density, the rule chooses the grid point with the highest mean validation accuracy over the
tuning seeds. It considers only points whose runs all reached the target density, since the accuracy of any other run
belongs to another density. On a tie, the first point of the grid is chosen. If a density is listed in two `groups`, the
later group decides for the arms that were tuned at its density. The file also lists the digests of the main specs that
`crbg evaluate` may measure on the test set. The rule uses validation accuracy only. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.experiments.config import Cell, Config, Experiment
from crbg.experiments.spec import Spec
from crbg.storage.atomic import write_text

HEAD = (
    "# Written by `crbg select` from the tuning records; do not edit. "
    "The rule is described in crbg/experiments/selection.py.\n"
    "# `set` overrides the settings of the arm in config.yaml at the densities listed; "
    "`evaluate` lists the specs that may be evaluated on the test set.\n"
)


def suggest(config: Config, tuning: Experiment, partial: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Choose settings for each arm of a tuning experiment; with `partial`, only for arms whose trials are all done.

    Returns:
        For each arm a list of choices, one for each tuned density.

    Raises:
        CrbgError: a tuning run is missing, or no point of an arm reached its target density.
    """
    untuned = sorted(set(tuning.groups) - {c.spec.density for c in tuning.cells}, key=str)
    if untuned and not config.demonstration:  # a demonstration tunes at few densities
        raise CrbgError(f"{tuning.name}.groups names density {untuned[0]}, at which no arm is tuned; add it to a grid")
    out: dict[str, list[dict[str, Any]]] = {}
    for arm in dict.fromkeys(c.arm for c in tuning.cells):
        mine = [c for c in tuning.cells if c.arm == arm]
        if partial and any(record_store.find(config, c.spec, c.seed) is None for c in mine):
            continue
        for density in tuning.groups:
            trials = [c for c in mine if c.spec.density == density]
            if trials:  # not every arm is tuned at every density; another group then includes this one
                out.setdefault(arm, []).append(_choice(config, tuning, trials, mine))
    return out


def _choice(config: Config, tuning: Experiment, trials: list[Cell], arm: list[Cell]) -> dict[str, Any]:
    """Choose the best of an arm's trials at one density; `arm` contains its trials at all densities."""
    density, name = trials[0].spec.density, trials[0].arm
    specs = {c.spec.digest(): c.spec for c in trials}
    if len({s.epochs for s in specs.values()}) > 1:
        raise CrbgError(
            f"{tuning.name}: trials of {name} at density {density} have different epochs, so they cannot be compared"
        )
    scores: dict[str, list[float]] = {}
    missed: set[str] = set()
    for c in trials:
        run = record_store.find_run(config, c.spec, c.seed)
        if run is None:
            raise CrbgError(
                f"{tuning.name}: {c.spec.slug()} seed {c.seed} is not done; `crbg run {tuning.name}` runs it"
            )
        if not run.record.ok or run.record.missed_density:
            missed.add(c.spec.digest())
        if run.record.ok and (accuracy := run.record.accuracy()) is not None:
            scores.setdefault(c.spec.digest(), []).append(accuracy)
    # The searches of a demonstration are too short to reach a target density, so all its trials may be chosen.
    able = {d: sum(v) / len(v) for d, v in scores.items() if config.demonstration or d not in missed}
    if not able:
        raise CrbgError(f"{tuning.name}: no setting of {name} reached the density {density}; widen its grid")
    best = max(able, key=lambda d: able[d])
    every = list({c.spec.digest(): c.spec for c in arm}.values())
    return {
        "densities": list(tuning.groups[density]),
        "tuned_at": density,
        "trials": len(specs),
        "missed": len(missed),
        "validation": round(able[best], 3),
        "digest": best,
        # Compared with the trials at all densities, since a field may be constant at this one and vary between them.
        "set": {k: v for k, v in varying(specs[best], every).items() if k not in ("density", "epochs")},
    }


def varying(chosen: Spec, trials: list[Spec]) -> dict[str, Any]:
    """Return the values of the chosen point in all fields that differ among the trials, by dotted name."""

    def flat(spec: Spec) -> dict[str, Any]:
        plain = {
            f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in ("options", "model_args")
        }
        plain |= {f"model_args.{k}": spec.model_args.get(k) for t in trials for k in t.model_args}
        return plain | {f"options.{k}": v for k, v in dataclasses.asdict(spec.resolved()).items()}

    every = [flat(s) for s in trials]
    return {k: v for k, v in flat(chosen).items() if any(e[k] != v for e in every)}


def write(config: Config, path: Path, partial: bool = False) -> str:
    """Choose settings for every main experiment that is tuned, write the file, and return the choices as text.

    With `partial`, arms whose trials are not all done are left out. Their main runs cannot start before settings are
    chosen for them.
    """
    out: dict[str, Any] = {}
    for e in config.experiments.values():
        if e.tuned_by:
            # A file for comparison, written elsewhere, contains only the experiments whose tuning runs are all done.
            tunings = [config.experiment(name) for name in e.tuned_by]
            todo = (c for t in tunings for c in t.cells if record_store.find(config, c.spec, c.seed) is None)
            if not partial and path != config.paper / "selected.yaml" and next(todo, None):
                continue
            arms = {c.arm for c in e.cells}
            out[e.name] = {
                arm: choices for t in tunings for arm, choices in suggest(config, t, partial).items() if arm in arms
            }
    write_text(path, HEAD + yaml.safe_dump(out, sort_keys=False))
    if path == config.paper / "selected.yaml" and not config.demonstration:
        # The chosen settings change the main specs, so the configuration is read again before digests are listed.
        again = configs.read(config.files)
        mains = [e for e in again.experiments.values() if e.role == "main"]
        ready = {e.name: [c for c in e.cells if not again.unchosen([c])] for e in mains}
        out["evaluate"] = {
            name: {c.spec.digest(): c.spec.slug() for c in cells} for name, cells in ready.items() if cells
        }
        write_text(path, HEAD + yaml.safe_dump(out, sort_keys=False))
    lines = [f"{path}: settings by highest mean validation accuracy"]
    for name in (n for n in out if n != "evaluate"):
        for arm, choices in out[name].items():
            for c in choices:
                settings = ", ".join(f"{k}={v}" for k, v in c["set"].items())
                outcome = f"{c['validation']} %, {c['trials']} trials, {c['missed']} missed the density"
                lines.append(f"  {name} {arm} at {c['tuned_at']}: {settings} ({outcome})")
    return "\n".join(lines)
