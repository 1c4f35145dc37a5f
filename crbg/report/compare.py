"""Tables that set methods side by side: what each is, what was seen of it, and who is sparsest at equal accuracy."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from crbg import methods
from crbg.experiments.config import Config, Experiment
from crbg.experiments.selection import varying
from crbg.report.records_table import values
from crbg.report.tables import CONTROLS, headline, interval

STEPS, TIMED = Path("benchmarks/step.md"), "lenet-300-100"
ROWS = {
    "crbg": "gated, normal, controlled", "crbg_no_noise": "gated, no noise, controlled", "crbg_polished": "gated, no noise, controlled",
    "biprop": "edge_popup_global", "supermask_rescaled": "supermask",
}  # fmt: skip
AT = 0.05  # density of the columns that show one, where an experiment has it
NEAR_CHANCE = 25.0  # per cent; the bound of the claim that gates find weights
MARGIN = 0.5  # points within which accuracies count as equal


def properties(rows: pd.DataFrame, experiment: Experiment, config: Config) -> pd.DataFrame:
    """Say of each arm with a density what its method is, what was tuned, what failed, and what its tickets are made of."""
    mine, out = headline(rows, experiment.name), []
    part, at = "".join(mine.part[:1]), shown_at(experiment)
    for arm in mine[mine.asked.notna()].arm.unique():
        spec = next(c.spec for c in experiment.cells if c.arm == arm)
        traits = methods.get(spec.method).TRAITS
        hard = getattr(spec.resolved(), "polish", 0.0)  # the share of a search at whose end gates are hard
        smooth = f"until the last {100 * hard:g} %" if hard else "yes"
        line = {
            "arm": arm,
            "differentiable": smooth if traits.differentiable else "no",
            "gradient": traits.gradient,
            "density": traits.density,
            "weights": traits.weights,
        }
        tuned = [c.spec for name in experiment.tuned_by for c in config.experiment(name).cells if c.arm == arm]
        fields = {
            k.removeprefix("options.") for s in tuned for k in varying(s, [t for t in tuned if t.density == s.density])
        }
        line["tuned"] = ", ".join(sorted(fields))
        trials = rows[rows.experiment.isin(experiment.tuned_by) & (rows.arm == arm)]
        trials = trials[(trials.reading == "binary") | trials.reading.isna()].drop_duplicates(["digest", "seed"])
        useless = (trials.accuracy.isna() | (trials.accuracy < 50)).sum()
        line["trials below 50 %"] = f"{useless} of {len(trials)}" if len(trials) else ""
        runs = rows[(rows.arm == arm) & (rows.experiment == experiment.name)].drop_duplicates(["digest", "seed"])
        line["collapsed"] = f"{(runs.status == 'collapse').sum()} of {len(runs)}"
        here = values(rows, experiment.name, arm, at, part=part)
        soft = values(rows, experiment.name, arm, at, part=part, reading="mean")
        line[f"accuracy at {at:g}"] = interval(list(here.accuracy)) if len(here) else ""
        line["real-valued gates"] = f"{soft.accuracy.mean():.1f}" if len(soft) and soft.accuracy.notna().any() else ""
        line |= {c: f"{here[c].mean():.0f}" if here[c].notna().any() else "" for c in CONTROLS}
        known = [here[c].astype(float).mean() for c in CONTROLS if here[c].notna().any()]
        learnt = (
            len(here) and here.accuracy.mean() > 2 * NEAR_CHANCE
        )  # a ticket that is no better than its controls finds nothing
        line["finds weights"] = ("yes" if max(known) <= NEAR_CHANCE else "in part") if known and learnt else ""
        steps = step_ratios() if spec.model == TIMED else {}
        line["step / dense"] = steps.get(ROWS.get(arm, arm), steps.get(spec.method, ""))
        out.append(line)
    return pd.DataFrame(out)


def shown_at(experiment: Experiment) -> float:
    """Choose the density of the columns that show one: AT, or the sparsest that was asked for."""
    asked = {c.spec.density for c in experiment.cells if c.spec.density is not None}
    return AT if AT in asked else min(asked)


def step_ratios(path: Path = STEPS) -> dict[str, str]:
    """Read the ratio of each way to train to the dense step from the benchmark's table; empty where it was not run."""
    found = (
        re.findall(r"^\| *(.+?) *\| *[\d.]+ *\| *([\d.]+) *\|", path.read_text(), re.MULTILINE) if path.exists() else []
    )
    return dict(found)


def equal_accuracy(
    rows: pd.DataFrame, experiment: Experiment, references: tuple[str, ...] = ("edge_popup", "crbg")
) -> pd.DataFrame:
    """Give, for each arm, the largest sparsity at which its mean stays within MARGIN of what a reference reaches at its best.

    Sparsities are those that were run; every sparser one than the answer fails, and so the answer is read from the
    sparse end.
    """
    mine, out = headline(rows, experiment.name), []
    mine = mine[mine.asked.notna()]
    means = mine.groupby(["arm", "asked"], sort=False).accuracy.mean()
    for arm in mine.arm.unique():
        line = {"arm": arm}
        for reference in (r for r in references if r in means):
            best = means[reference].max()
            enough = [d for d, a in means[arm].items() if a >= best - MARGIN]
            head = f"within {MARGIN:g} of {reference} ({best:.2f} % at {100 * (1 - means[reference].idxmax()):g} %)"
            line[head] = f"{100 * (1 - min(enough)):g} %" if enough else "nowhere"
        out.append(line)
    return pd.DataFrame(out)
