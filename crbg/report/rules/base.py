"""What all rules share: the verdict, typed fields, the runs that a rule names, and comparisons of two arms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pandas as pd

from crbg.methods.crbg import LANDED
from crbg.report import stats
from crbg.report.declared import Declared
from crbg.report.records_table import values


@dataclass(frozen=True)
class Verdict:
    """What a rule says about the measured runs.

    seeds: the smallest number of seeds among the compared arms; None where nothing was compared.
    absent: the runs that the rule names do not exist, as opposed to runs that cannot be judged.
    """

    word: str
    evidence: str
    seeds: int | None = None
    absent: bool = False


def not_run(evidence: str = "no runs", absent: bool = True) -> Verdict:
    """Say that a rule cannot be applied, and why."""
    return Verdict("not run", evidence, absent=absent)


class Rule(Declared, ABC):
    """A rule of paper/claims.yaml. Its fields are those of the entry, without `type`."""

    type: ClassVar[str]

    @property
    def point(self) -> tuple[float, float] | None:
        """The published density and accuracy in %, to be shown in a figure."""
        return None

    @abstractmethod
    def judge(self, rows: pd.DataFrame) -> Verdict:
        """Apply the rule to the table of all runs."""


R = TypeVar("R", bound=type[Rule])
RULES: dict[str, type[Rule]] = {}


def register(name: str) -> Callable[[R], R]:
    """Make a rule available as `type: name`."""

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
        """The densities that the rule reads; None stands for runs without a target density."""
        return (None,)


class DensityRule(ArmRule, ABC):
    """A rule about one arm at one density, the share of weights that are kept. None: no target density was set."""

    density: float | None

    @property
    def densities(self) -> tuple[float | None, ...]:
        """The density of the rule."""
        return (self.density,)

    def runs(self, rows: pd.DataFrame, arm: str | None = None, reading: str = "binary") -> pd.DataFrame:
        """Select the test rows of an arm of the rule's experiment at its density, by default those of its own arm."""
        return values(rows, self.experiment, arm or self.arm, self.density, reading=reading)


def collapsed(rows: pd.DataFrame, experiment: str, arm: str, density: float) -> int:
    """Count the runs that ended without a ticket. They have no test accuracy to compare."""
    mine = rows[(rows.experiment == experiment) & (rows.arm == arm) & (rows.status == "collapse")]
    return len(mine[(mine.asked - density).abs() < 1e-9].drop_duplicates(["digest", "seed"]))


def missed(mine: pd.DataFrame, mask: str, density: float | None) -> str:
    """Say how many runs missed their density and therefore cannot be judged; empty if none did.

    The natural mask (`mask: half`) can be judged wherever it is at least as sparse as required.
    """
    wrong = mine[mine.density_missed.astype(bool)]
    if mask == "half" and density is not None:
        wrong = wrong[~(wrong.natural.astype(float) <= (1 + LANDED) * density)]
    return f"density missed in {len(wrong)} of {len(mine)} runs" if len(wrong) else ""


def compare(a: pd.DataFrame, b: pd.DataFrame) -> stats.Contrast:
    """Test a - b: paired if all runs share seed, initial draw and data order with a run of the other, else Welch's."""
    pairs = a.merge(b, on=["seed", "draw", "order"])
    if len(pairs) == len(a) == len(b):
        return stats.paired(list(pairs.accuracy_x), list(pairs.accuracy_y))
    return stats.welch(list(a.accuracy), list(b.accuracy))


def paired(a: pd.DataFrame, b: pd.DataFrame) -> stats.Interval:
    """Give the mean paired difference a - b of two tables whose rows stand in the same order of seeds."""
    return stats.paired(list(a.accuracy), list(b.accuracy)).difference


def decide(holds: bool, fails: bool) -> str:
    """Choose the word of a verdict: neither is inconclusive."""
    return "reproduced" if holds else "not reproduced" if fails else "inconclusive"


def span(i: stats.Interval, form: str = "+.2f") -> str:
    """Write the ends of an interval after its mean; one seed has no interval."""
    return f" [{i.low:{form}}, {i.high:{form}}]" if math.isfinite(i.low) and math.isfinite(i.high) else ""


def count(n: int, what: str) -> str:
    """Write a number with its noun: 1 run, 2 runs."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def mean(column: Any) -> float:
    """Average a column that may hold numbers as objects."""
    return float(column.astype(float).mean())
