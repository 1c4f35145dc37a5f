"""Code that all rules share: the verdict, typed fields, selection of runs, and comparisons of two arms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import pandas as pd

from crbg.data.metrics import ACCURACY
from crbg.methods.crbg import LANDED
from crbg.report import stats
from crbg.report.declared import Declared
from crbg.report.records_table import metric_of, values


@dataclass(frozen=True)
class Check:
    """An interval that a rule compares with a bound; `above` says on which side of the bound the claim holds."""

    interval: stats.Interval
    bound: float
    above: bool = True

    @property
    def open(self) -> bool:
        """Whether the interval contains the bound, so that it decides nothing."""
        return self.interval.low <= self.bound <= self.interval.high

    @property
    def against(self) -> bool:
        """Whether the mean is on the side of the bound where the claim fails."""
        return (self.interval.mean < self.bound) == self.above


@dataclass(frozen=True)
class Verdict:
    """The outcome of a rule for the measured runs.

    seeds: the smallest number of seeds among the compared arms; None if nothing was compared.
    absent: whether the verdict is "not run" because the runs do not exist, and not because they cannot be judged.
    checks: the comparisons on which the outcome depends. The claim holds if all of them hold, or, without `every`, if
    one does.
    """

    word: str
    evidence: str
    seeds: int | None = None
    absent: bool = False
    checks: tuple[Check, ...] = ()
    every: bool = True

    def decision(self) -> tuple[int | None, str]:
        """Return the number of seeds that would decide an inconclusive verdict if all means stay, and the outcome.

        One decided check is enough for an outcome that a single check can decide; otherwise, all open checks are
        needed. The number is None if it is unknown.
        """
        pending = [c for c in self.checks if c.open]
        single = [c for c in pending if c.against == self.every]  # each of these alone would decide
        needs = [stats.seeds_to_decide(c.interval, c.bound) for c in single or pending]
        known = [n for n in needs if n is not None]
        word = decide(bool(single) != self.every, bool(single) == self.every)
        if single:
            return min(known, default=None), word
        return (max(known, default=None) if len(known) == len(needs) else None), word


def not_run(evidence: str = "no runs", absent: bool = True) -> Verdict:
    """Return the verdict of a rule that cannot be applied; `evidence` gives the reason."""
    return Verdict("not run", evidence, absent=absent)


class Rule(Declared, ABC):
    """A rule of paper/claims.yaml. Its fields are those of the entry, without `type`."""

    type: ClassVar[str]
    oriented: ClassVar[bool] = False  # whether the rule knows metrics other than accuracy

    @property
    def point(self) -> tuple[float, float] | None:
        """The published density and accuracy in %, for figures; None if the rule has no such point."""
        return None

    @abstractmethod
    def judge(self, rows: pd.DataFrame) -> Verdict:
        """Apply the rule to the table of all runs."""


Mask = Literal["binary", "exact", "half", "mean"]
Part = Literal["test", "validation"]
R = TypeVar("R", bound=type[Rule])
RULES: dict[str, type[Rule]] = {}


def register(name: str) -> Callable[[R], R]:
    """Register a rule as `type: name`."""

    def add(rule: R) -> R:
        rule.type = name
        RULES[name] = rule
        return rule

    return add


class ArmRule(Rule, ABC):
    """A rule about one arm of one experiment."""

    experiment: str
    arm: str

    @property
    def densities(self) -> tuple[float | None, ...]:
        """The densities that the rule uses; None selects runs without a target density."""
        return (None,)


class DensityRule(ArmRule, ABC):
    """A rule about one arm at one density (fraction of weights kept); None selects runs without a target density."""

    density: float | None

    @property
    def densities(self) -> tuple[float | None, ...]:
        """The density of the rule."""
        return (self.density,)

    def runs(self, rows: pd.DataFrame, arm: str | None = None, reading: str = "binary") -> pd.DataFrame:
        """Select the test rows of an arm at the rule's density; `arm` defaults to the arm of the rule."""
        return values(rows, self.experiment, arm or self.arm, self.density, reading=reading)


def collapsed(rows: pd.DataFrame, experiment: str, arm: str, density: float) -> int:
    """Count the runs that ended without a ticket and therefore have no test accuracy."""
    mine = rows[(rows.experiment == experiment) & (rows.arm == arm) & (rows.status == "collapse")]
    return len(mine[(mine.asked - density).abs() < 1e-9].drop_duplicates(["digest", "seed"]))


def missed(mine: pd.DataFrame, mask: str = "binary", density: float | None = None, of: str = "") -> str:
    """Say how many runs (of the arm `of`) did not reach their target density and cannot be judged; empty if none.

    With `mask: half` (the mask mu > 1/2), a run can also be judged if its mask is sparser than required.
    """
    wrong = mine[mine.density_missed.eq(True)]
    if mask == "half" and density is not None:
        wrong = wrong[~(wrong.natural.astype(float) <= (1 + LANDED) * density)]
    runs = f"{len(mine)} runs of {of}" if of else f"{len(mine)} runs"
    return f"{len(wrong)} of {runs} did not reach the target density" if len(wrong) else ""


def unless_missed(verdict: Verdict, *sides: pd.DataFrame) -> Verdict:
    """Return the verdict of a comparison; it is inconclusive if a run of one side missed its target density.

    Such a run is cut to the density after its search, so its accuracy is not that of the mask which was searched.
    """
    notes = [note for mine in sides if len(mine) and (note := missed(mine, of=mine.arm.iloc[0]))]
    if not notes:
        return verdict
    return Verdict("inconclusive", "; ".join([verdict.evidence, *notes, "they decide nothing"]), verdict.seeds)


def compare(a: pd.DataFrame, b: pd.DataFrame, oriented: bool = True) -> stats.Contrast:
    """Return the test of a - b: paired if all runs match in seed, initial draw and data order, otherwise Welch's.

    If a smaller value of the metric is better, it is the test of b - a, so that a positive difference is in favour of
    a. Values that are not those of the metric are compared with `oriented=False`.
    """
    better = metric_of(a).better if oriented else float
    pairs = a.merge(b, on=["seed", "draw", "order"])
    if len(pairs) == len(a) == len(b):
        return stats.paired([*map(better, pairs.value_x)], [*map(better, pairs.value_y)])
    return stats.welch([*map(better, a.value)], [*map(better, b.value)])


def paired(a: pd.DataFrame, b: pd.DataFrame) -> stats.Interval:
    """Return the mean paired difference a - b of two tables that list the same seeds in the same order."""
    return stats.paired(list(a.value), list(b.value)).difference


def decide(holds: bool, fails: bool) -> str:
    """Return the verdict as a word: "inconclusive" if neither condition is true."""
    return "reproduced" if holds else "not reproduced" if fails else "inconclusive"


def span(i: stats.Interval, form: str = "+.2f") -> str:
    """Format the ends of an interval, to be printed after its mean; empty for a single seed, which has none."""
    return f" [{i.low:{form}}, {i.high:{form}}]" if math.isfinite(i.low) and math.isfinite(i.high) else ""


def gap(i: stats.Interval, rows: pd.DataFrame, unit: str = "") -> str:
    """Format a difference and its interval with the digits of the metric of `rows`."""
    form = f"+.{metric_of(rows).digits}f"
    return f"{i.mean:{form}}{' ' * bool(unit)}{unit}{span(i, form)}"


def worse(rows: pd.DataFrame) -> str:
    """Return the direction in which the metric of `rows` becomes worse."""
    return "lower" if metric_of(rows).larger_is_better else "higher"


def points(rows: pd.DataFrame) -> str:
    """Return the unit of a difference of the metric of `rows`."""
    metric = metric_of(rows)
    return "points" if metric is ACCURACY else metric.unit.strip() or f"in the {metric.title}"


def count(n: int, what: str) -> str:
    """Format a count with its noun: 1 run, 2 runs."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def mean(column: Any) -> float:
    """Return the mean of a column whose dtype may be `object`."""
    return float(column.astype(float).mean())
