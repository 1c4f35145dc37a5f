"""Rules that compare arms: accuracy drop against a reference, best of several, ratio of sparsities, ratio of costs."""

from __future__ import annotations

import math
from typing import ClassVar

import pandas as pd

from crbg.report import stats
from crbg.report.records_table import metric_of, values
from crbg.report.rules.base import (
    ArmRule,
    Check,
    DensityRule,
    Part,
    Verdict,
    collapsed,
    compare,
    count,
    decide,
    gap,
    not_run,
    points,
    register,
    span,
    unless_missed,
    worse,
)


@register("loss")
class Loss(DensityRule):
    """An arm is at most `most` points less accurate than a reference arm, which may be in another experiment."""

    oriented: ClassVar[bool] = True

    reference: str
    most: float
    reference_experiment: str = ""
    reference_density: float | None = None

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = self.runs(rows)
        reference = values(rows, self.reference_experiment or self.experiment, self.reference, self.reference_density)
        if mine.empty or reference.empty:
            return not_run()
        d = compare(reference, mine).difference
        evidence = f"{self.reference} - {self.arm} = {gap(d, mine, points(mine))}, at most {self.most} allowed"
        checks = (Check(d, self.most, above=False),)
        found = Verdict(decide(d.high <= self.most, d.low > self.most), f"{evidence}, n = {d.n}", d.n, checks=checks)
        return unless_missed(found, mine, reference)


@register("lead")
class Lead(DensityRule):
    """An arm is more accurate than another by a published number of points, `by`, within a margin."""

    other: str
    by: float
    margin: float

    def judge(self, rows: pd.DataFrame) -> Verdict:
        ours, theirs = self.runs(rows), self.runs(rows, self.other)
        if ours.empty or theirs.empty:
            return not_run()
        d = compare(ours, theirs).difference
        beyond = stats.Interval(d.mean - self.by, d.low - self.by, d.high - self.by, d.n, d.error)
        evidence = f"{self.arm} {ours.value.mean():.2f} %, {self.other} {theirs.value.mean():.2f} %: "
        evidence += f"{d.mean:+.2f} points{span(d)}, {self.by:+g} claimed, margin {self.margin}, n = {d.n}"
        checks = (Check(beyond, -self.margin),)
        found = Verdict(stats.margin_verdict(beyond, self.margin), evidence, d.n, checks=checks)
        return unless_missed(found, ours, theirs)


@register("pronounced")
class Pronounced(DensityRule):
    """The lead of an arm over a reference is larger at `density` than at the density `moderate`."""

    reference: str
    moderate: float

    @property
    def densities(self) -> tuple[float | None, ...]:
        """The two densities of the rule."""
        return self.density, self.moderate

    def judge(self, rows: pd.DataFrame) -> Verdict:
        leads, sides = [], []
        for density in self.densities:
            ours, theirs = (values(rows, self.experiment, arm, density) for arm in (self.arm, self.reference))
            sides += [ours, theirs]
            pairs = ours.merge(theirs, on=["seed", "draw", "order"])
            if pairs.empty:
                return not_run()
            leads.append(pairs.assign(value=pairs.value_x - pairs.value_y)[["seed", "value"]])
        both = leads[0].merge(leads[1], on="seed")
        if both.empty:
            return not_run()
        d = stats.paired(list(both.value_x), list(both.value_y)).difference
        ends = " and ".join(f"{x.value.mean():+.2f} at {k}" for x, k in zip(leads, self.densities, strict=True))
        evidence = f"{self.arm} - {self.reference} is {ends}; difference {d.mean:+.2f}{span(d)}, n = {d.n}"
        return unless_missed(Verdict(decide(d.low > 0, d.high < 0), evidence, d.n, checks=(Check(d, 0.0),)), *sides)


@register("frontier")
class Frontier(DensityRule):
    """Our method reaches `density` where another reaches only `reference_density`, at comparable accuracy.

    Two conditions are required: our accuracy at `density` is within the margin of theirs at `reference_density`, and
    their accuracy at `density` is not. `reference`: the arm at `reference_density`, if not `other`.
    """

    other: str
    reference_density: float
    margin: float
    reference: str = ""

    def judge(self, rows: pd.DataFrame) -> Verdict:
        reference = self.reference or self.other
        ours, theirs = self.runs(rows), self.runs(rows, self.other)
        base = values(rows, self.experiment, reference, self.reference_density)
        if ours.empty or theirs.empty or base.empty:
            return not_run()
        pairs = [one.merge(base, on=["seed", "draw", "order"]) for one in (ours, theirs)]
        if any(len(p) < len(base) for p in pairs):
            return not_run("the runs are not paired by seed, initial draw and data order", absent=False)
        up, down = (stats.paired(list(p.value_x), list(p.value_y)).difference for p in pairs)
        m, loss = self.margin, stats.Interval(-down.mean, -down.high, -down.low, down.n, down.error)
        evidence = (
            f"{self.arm} at {self.density} - {reference} at {self.reference_density} = {up.mean:+.2f}{span(up)}; "
            f"{self.other} at {self.density} is lower by {loss.mean:.2f}{span(loss, '.2f')}; margin {m}, n = {up.n}"
        )
        word = decide(up.low >= -m and down.high < -m, up.high < -m or down.low >= -m)
        found = Verdict(word, evidence, up.n, checks=(Check(up, -m), Check(down, -m, above=False)))
        return unless_missed(found, ours, theirs, base)


@register("best")
class Best(ArmRule):
    """An arm is more accurate than each of `others` at one or more densities: all intervals of differences are above 0.

    density: one density, several, or null for runs without a target density.
    within: the arm may be worse by less than this many points.
    among: the experiment of `others`, if not `experiment`; its arms have no target density.
    whole: those of `others` that have no target density.
    part: the data split; on validation, each arm is compared at its best setting.
    """

    oriented: ClassVar[bool] = True

    density: float | tuple[float, ...] | None
    others: tuple[str, ...]
    within: float = 0.0
    among: str = ""
    whole: tuple[str, ...] = ()
    part: Part = "test"

    @property
    def densities(self) -> tuple[float | None, ...]:
        """The density or densities of the rule."""
        return self.density if isinstance(self.density, tuple) else (self.density,)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        found = [self._judge(rows, d) for d in self.densities]
        if len(found) == 1:
            return found[0]
        words = [v.word for v in found]
        word = decide(set(words) == {"reproduced"}, "not reproduced" in words)
        return Verdict(
            "not run" if "not run" in words else word,
            "; ".join(v.evidence for v in found),
            min((v.seeds for v in found if v.seeds is not None), default=None),
            any(v.absent for v in found),
            tuple(check for v in found for check in v.checks),
        )

    def _judge(self, rows: pd.DataFrame, density: float | None) -> Verdict:
        """Compare the arm with all others at one density."""
        ours = self._chosen(rows, self.experiment, self.arm, density)
        if ours.empty:
            return not_run()
        lost = self._lost(rows, self.arm, density)
        differences: dict[str, stats.Interval] = {}
        seeds, sides = [len(ours)], [ours]
        for other in self.others:
            asked = None if self.among or other in self.whole else density
            theirs = self._chosen(rows, self.among or self.experiment, other, asked)
            if gone := lost + self._lost(rows, other, density):
                return Verdict("inconclusive", ", ".join(gone))
            if theirs.empty:
                return not_run(f"no runs of {other}")
            differences[other] = compare(ours, theirs).difference
            seeds.append(len(theirs))
            sides.append(theirs)
        listed = ", ".join(f"{gap(d, ours)} against {other}" for other, d in differences.items())
        allowed = f"; at most {self.within} {points(ours)} {worse(ours)} allowed" if self.within else ""
        where = ", validation" if self.part == "validation" else ""
        at = "" if density is None else f" at {density}"
        evidence = f"{self.arm}{at}: {listed}{allowed}; n = {min(seeds)}{where}"
        found = differences.values()
        word = decide(all(d.low > -self.within for d in found), any(d.high < -self.within for d in found))
        checks = tuple(Check(d, -self.within) for d in found)
        return unless_missed(Verdict(word, evidence, min(seeds), checks=checks), *sides)

    def _lost(self, rows: pd.DataFrame, arm: str, density: float | None) -> list[str]:
        n = 0 if density is None else collapsed(rows, self.experiment, arm, density)
        return [f"{count(n, 'run')} of {arm} collapsed"] if n else []

    def _chosen(self, rows: pd.DataFrame, experiment: str, arm: str, density: float | None) -> pd.DataFrame:
        """Select the rows of an arm. If there are several settings: the best one on validation, nothing on test."""
        mine = values(rows, experiment, arm, density, part=self.part)
        if mine.digest.nunique() <= 1:
            return mine
        if self.part != "validation":
            return mine.iloc[:0]
        return max((g for _, g in mine.groupby("digest")), key=lambda g: metric_of(mine).better(g.value.mean()))


@register("cheaper")
class Cheaper(DensityRule):
    """An arm costs 1 / `times` of a reference, in search seconds: ratio reference / arm, geometric mean over seeds.

    The claim holds if the ratio is at least `share` of `times`. Runs on different machines are not compared.
    """

    reference: str
    times: float
    share: float = 0.9

    def judge(self, rows: pd.DataFrame) -> Verdict:
        ours, theirs = self.runs(rows), self.runs(rows, self.reference)
        if ours.empty or theirs.empty:
            return not_run()
        if ours.device.nunique() != 1 or set(ours.device) != set(theirs.device):
            return not_run("the runs were timed on different machines", absent=False)
        theirs_log, ours_log = (g.assign(value=g.search_seconds.astype(float).map(math.log)) for g in (theirs, ours))
        d = compare(theirs_log, ours_log, oriented=False).difference
        ratio = stats.Interval(math.exp(d.mean), math.exp(d.low), math.exp(d.high), d.n)
        least = self.share * self.times
        seconds = f"{self.arm} takes {ours.search_seconds.mean():.0f} s, {self.reference} "
        seconds += f"{theirs.search_seconds.mean():.0f} s: {ratio.mean:.1f} times{span(ratio, '.1f')}"
        word = decide(ratio.low >= least, ratio.high < least)
        checks = (Check(d, math.log(least)),)
        return Verdict(word, f"{seconds}, {self.times} claimed, n = {d.n}", d.n, checks=checks)
