"""Tables that compare methods: properties, measurements at one density, and the sparsity at equal accuracy."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from crbg import methods
from crbg.experiments.config import Config, Experiment
from crbg.experiments.selection import varying
from crbg.experiments.spec import Spec
from crbg.methods.contract import UNSTATED
from crbg.report.records_table import values
from crbg.report.tables import CONTROLS, headline, interval

STEPS, TIMED = Path("benchmarks/step.md"), "lenet-300-100"
ROWS = {
    "crbg": "gated, normal, controlled",
    "crbg_no_noise": "gated, no noise, controlled",
    "crbg_polished": "gated, no noise, controlled",
    "biprop": "edge_popup_global",
    "supermask_rescaled": "supermask",
}
AT = 0.05  # density shown in single-density columns, if the experiment has it
NEAR_CHANCE = 25.0  # accuracy in %, equal to the bounds in the claim `finds-weights`
MARGIN = 0.5  # accuracies that differ by at most this many points count as equal


def properties(rows: pd.DataFrame, experiment: Experiment, config: Config) -> pd.DataFrame:
    """Describe each arm that has a target density: its method, tuned options, failed runs, and measured tickets."""
    mine, steps, out = headline(rows, experiment.name), step_ratios(), []
    for arm in mine[mine.asked.notna()].arm.unique():
        spec = next(c.spec for c in experiment.cells if c.arm == arm)
        line = {"arm": str(arm)} | _method(spec) | _tuning(rows, experiment, config, arm)
        runs = rows[(rows.arm == arm) & (rows.experiment == experiment.name)].drop_duplicates(["digest", "seed"])
        line["collapsed"] = f"{(runs.status == 'collapse').sum()} of {len(runs)}"
        line |= _ticket(rows, experiment, arm, str(mine.part.iloc[0]))
        known = steps if spec.model == TIMED else {}
        line["step / dense"] = known.get(ROWS.get(arm, arm), known.get(spec.method, ""))
        out.append(line)
    return pd.DataFrame(out)


def _method(spec: Spec) -> dict[str, str]:
    """Return the traits of a method, as table columns."""
    traits = methods.traits(spec.method)
    hard = getattr(spec.resolved(), "polish", 0.0)  # length of the final phase with hard gates
    smooth = f"until the last {100 * hard:g} %" if hard else "yes"
    differentiable = smooth if traits.differentiable else "no"
    return {"differentiable": differentiable if traits is not UNSTATED else traits.gradient} | asdict(traits)


def _tuning(rows: pd.DataFrame, experiment: Experiment, config: Config, arm: str) -> dict[str, str]:
    """Name the tuned options, and count the trials without a ticket or with an accuracy below 50 %."""
    tuned = [c.spec for name in experiment.tuned_by for c in config.experiment(name).cells if c.arm == arm]
    fields = {
        k.removeprefix("options.") for s in tuned for k in varying(s, [t for t in tuned if t.density == s.density])
    }
    trials = rows[rows.experiment.isin(experiment.tuned_by) & (rows.arm == arm)]
    trials = trials[(trials.reading == "binary") | trials.reading.isna()].drop_duplicates(["digest", "seed"])
    useless = (trials.value.isna() | (trials.value < 50)).sum()
    below = f"{useless} of {len(trials)}" if len(trials) else ""
    return {"tuned": ", ".join(sorted(fields)), "trials below 50 %": below}


def _ticket(rows: pd.DataFrame, experiment: Experiment, arm: str, part: str) -> dict[str, str]:
    """Compare the accuracy of an arm's tickets at one density with that of its real-valued gates and its controls."""
    at = shown_at(experiment)
    here = values(rows, experiment.name, arm, at, part=part)
    soft = values(rows, experiment.name, arm, at, part=part, reading="mean")
    controls = {c: here[c].astype(float).mean() for c in CONTROLS if here[c].notna().any()}
    learnt = len(here) and here.value.mean() > 2 * NEAR_CHANCE  # otherwise the controls are not informative
    line = {f"accuracy at {at:g}": interval(list(here.value)) if len(here) else ""}
    line["real-valued gates"] = f"{soft.value.mean():.1f}" if len(soft) and soft.value.notna().any() else ""
    line |= {c: f"{controls[c]:.0f}" if c in controls else "" for c in CONTROLS}
    found = "yes" if max(controls.values(), default=0.0) <= NEAR_CHANCE else "in part"
    return line | {"finds weights": found if controls and learnt else ""}


def shown_at(experiment: Experiment) -> float:
    """Choose the density for single-density columns: AT if the experiment has it, otherwise its lowest density."""
    asked = {c.spec.density for c in experiment.cells if c.spec.density is not None}
    return AT if AT in asked else min(asked)


def step_ratios(path: Path = STEPS) -> dict[str, str]:
    """Read from the benchmark how long training steps take relative to dense ones; empty if it was not run."""
    text = path.read_text() if path.exists() else ""
    return dict(re.findall(r"^\| *(.+?) *\| *[\d.]+ *\| *([\d.]+) *\|", text, re.MULTILINE))


def equal_accuracy(
    rows: pd.DataFrame, experiment: Experiment, references: tuple[str, ...] = ("edge_popup", "crbg")
) -> pd.DataFrame:
    """Return the largest sparsity at which each arm is within MARGIN of the best accuracy of a reference arm.

    Only the sparsities that were run are considered, without interpolation.
    """
    mine, out = headline(rows, experiment.name), []
    mine = mine[mine.asked.notna()]
    means = mine.groupby(["arm", "asked"], sort=False).value.mean()
    for arm in mine.arm.unique():
        line = {"arm": arm}
        for reference in (r for r in references if r in means):
            best = means[reference].max()
            enough = [d for d, a in means[arm].items() if a >= best - MARGIN]
            head = f"within {MARGIN:g} of {reference} ({best:.2f} % at {100 * (1 - means[reference].idxmax()):g} %)"
            line[head] = f"{100 * (1 - min(enough)):g} %" if enough else "nowhere"
        out.append(line)
    return pd.DataFrame(out)
