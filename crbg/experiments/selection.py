"""The selection rule, which chooses settings from tuning records and writes them to paper/selected.yaml.

For each arm and tuned density, the rule chooses the grid point with the best mean of the metric on the validation part
over the tuning seeds. It considers only points whose runs all reached the target density, since the result of any other
run belongs to another density. Networks have few units, so gates on units seldom reach a density to within 2 %: they
are compared by their mask `half`, if it is sparse enough, as in the rules for their claims. On a tie, the first point
of the grid is chosen. If a density is listed in two `groups`, the later group takes precedence for the arms tuned at
the density of that group. The file also lists the digests of the main specs that `crbg evaluate` may measure on the
test set. The rule reads the validation part only. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.experiments.config import Cell, Config, Experiment
from crbg.experiments.record import Record
from crbg.experiments.spec import Spec
from crbg.methods.crbg import LANDED
from crbg.storage.atomic import write_text

HEAD = (
    "# Written by `crbg select` from the tuning records; do not edit. "
    "The rule is described in crbg/experiments/selection.py.\n"
    "# `set` overrides the settings of the arm in config.yaml at the densities listed; "
    "`evaluate` lists the specs that may be evaluated on the test set.\n"
)


def suggest(config: Config, tuning: Experiment, skip: Collection[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Choose settings for each arm of a tuning experiment, except the arms in `skip`.

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
        if arm in skip:
            continue
        for density in tuning.groups:
            trials = [c for c in mine if c.spec.density == density]
            if trials:  # an arm that is not tuned here gets its settings from another group
                out.setdefault(arm, []).append(_choice(config, tuning, trials, mine))
    return out


def unfinished(config: Config, tuning: Experiment) -> list[str]:
    """Return the arms of a tuning experiment whose trials are not all done."""
    return list(dict.fromkeys(c.arm for c in tuning.cells if record_store.find(config, c.spec, c.seed) is None))


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
        reading = "half" if _gates_units(c.spec) else "binary"
        if not run.record.ok or not _landed(c.spec, run.record):
            missed.add(c.spec.digest())
        if run.record.ok and (value := run.record.value(reading)) is not None:
            scores.setdefault(c.spec.digest(), []).append(value)
    # The searches of a demonstration are too short to reach a target density, so any of its trials may be chosen.
    able = {d: sum(v) / len(v) for d, v in scores.items() if config.demonstration or d not in missed}
    if not able:
        raise CrbgError(f"{tuning.name}: no setting of {name} reached the density {density}; widen its grid")
    metric = trials[0].spec.metric
    best = max(able, key=lambda d: metric.better(able[d]))
    every = list({c.spec.digest(): c.spec for c in arm}.values())
    return {
        "densities": list(tuning.groups[density]),
        "tuned_at": density,
        "trials": len(specs),
        "missed": len(missed),
        "validation": round(able[best], metric.digits + 1),
        "digest": best,
        # Trials at all densities are compared, since a field may vary only between densities.
        "set": {k: v for k, v in varying(specs[best], every).items() if k not in ("density", "epochs")},
    }


def _gates_units(spec: Spec) -> bool:
    """Whether the gates of a run act on units instead of weights."""
    return getattr(spec.resolved(), "granularity", "weight") != "weight"


def _landed(spec: Spec, record: Record) -> bool:
    """Whether a run reached its target density, or, with gates on units, whether its mask `half` is sparse enough."""
    if not record.missed_density or not _gates_units(spec) or spec.density is None:
        return not record.missed_density
    open_units = ((record.anatomy or {}).get("epochs") or [{}])[-1].get("density")
    return open_units is not None and bool(open_units <= (1 + LANDED) * spec.density)


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


def write(config: Config, path: Path, partial: bool = False) -> tuple[str, list[str]]:
    """Choose settings for every main experiment that is tuned, and write the file.

    An arm with unfinished trials keeps the settings that it has. With `partial`, or if it has none, it is left out: its
    main runs cannot start before settings are chosen for it. A file for comparison, which is written to another path
    than `paper/selected.yaml`, contains only the experiments whose trials are all done.

    Returns:
        The choices as text, and one line each on the arms that keep their settings and on those that have none.

    Raises:
        CrbgError: trials of every arm are missing, and no arm has settings; or no point reached its target density.
    """
    own = path == config.paper / "selected.yaml"
    old = configs.read_selected(configs.choices(config.paper)) if own and not partial else {}
    tuned = sorted({t for e in config.experiments.values() for t in e.tuned_by})
    left = {name: unfinished(config, config.experiment(name)) for name in tuned}
    out: dict[str, Any] = {}
    kept, bare = list[str](), list[str]()
    for e in config.experiments.values():
        tunings = [config.experiment(name) for name in e.tuned_by]
        waiting = [arm for t in tunings for arm in left[t.name]]
        if not tunings or (waiting and not own and not partial):
            continue
        arms = {c.arm for c in e.cells}
        chosen = {arm: choices for t in tunings for arm, choices in suggest(config, t, left[t.name]).items()}
        chosen |= {arm: old[e.name][arm] for arm in waiting if arm in old.get(e.name, {})}
        order = dict.fromkeys(c.arm for t in tunings for c in t.cells)
        out[e.name] = {arm: chosen[arm] for arm in order if arm in arms and arm in chosen}
        for names, among in ((kept, old.get(e.name, {}).keys()), (bare, arms - chosen.keys())):
            those = arms.intersection(waiting, among)
            names += [e.name] if those and those == arms & order.keys() else sorted(f"{e.name}.{arm}" for arm in those)
    if bare and not partial and not any(out.values()):
        trials = ", ".join(tuned)
        raise CrbgError(f"no settings can be chosen, because no arm has all its trials; `crbg run NAME` runs {trials}")
    write_text(path, HEAD + yaml.safe_dump(out, sort_keys=False))
    if own and not config.demonstration:
        # The chosen settings change the main specs, so the configuration is read again before digests are listed.
        folders = {"results": config.results, "paper": config.paper, "data_dir": config.data_dir or ""}
        again = configs.read(config.files, [f"{key}={value}" for key, value in folders.items()])
        mains = [e for e in again.experiments.values() if e.role == "main"]
        ready = {e.name: [c for c in e.cells if not again.unchosen([c])] for e in mains}
        out["evaluate"] = {
            name: {c.spec.digest(): c.spec.slug() for c in cells} for name, cells in ready.items() if cells
        }
        write_text(path, HEAD + yaml.safe_dump(out, sort_keys=False))
    unknown = dict.fromkeys(("tuned_at", "validation", "trials", "missed"), "?")  # in a choice written by hand
    lines = [f"{path}: settings by the best mean result on validation"]
    for name in (n for n in out if n != "evaluate"):
        unit = config.experiment(name).metric.unit
        for arm, choices in out[name].items():
            for c in (unknown | choice for choice in choices):
                settings = ", ".join(f"{k}={v}" for k, v in c["set"].items())
                outcome = f"{c['validation']}{unit}, {c['trials']} trials, {c['missed']} missed the density"
                lines.append(f"  {name} {arm} at {c['tuned_at']}: {settings} ({outcome})")
    notes = {"keep the settings that they have": kept, "have no settings yet": bare}
    return "\n".join(lines), [
        f"Some trials are missing, so these experiments or arms {what}: {', '.join(names)}."
        for what, names in notes.items()
        if names
    ]
