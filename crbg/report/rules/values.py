"""Rules about the accuracy of one arm: a published value, a minimum, the cost of binarising."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
from pydantic import model_validator

from crbg.report import stats
from crbg.report.records_table import metric_of
from crbg.report.rules.base import (
    Check,
    DensityRule,
    Mask,
    Verdict,
    decide,
    mean,
    missed,
    not_run,
    paired,
    register,
    span,
)


@register("value")
class Value(DensityRule):
    """A published accuracy at a published sparsity: d = ours - published is compared with the margin.

    at: the published density. If no target density is set, a ticket denser than this is not a reproduction.
    mask: how gates become a mask (docs/vocabulary.md, "reading").
    """

    published: float
    margin: float
    at: float | None = None
    mask: Mask = "binary"

    @model_validator(mode="after")
    def _has_a_density(self) -> Value:
        if self.density is None and self.at is None:
            raise ValueError("a rule with `density: null` needs the published density as `at`")
        return self

    @property
    def point(self) -> tuple[float, float] | None:
        return None if self.at is None else (self.at, self.published)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = self.runs(rows, reading=self.mask)
        if problem := missed(mine, self.mask, self.density):
            return not_run(problem, absent=False)
        word, d = stats.value_verdict(list(mine.value), self.published, self.margin)
        if d is None:
            return not_run()
        if self.density is None and self.at is not None and mine.density.mean() > self.at:
            word = "not reproduced"  # whatever the accuracy, because fewer weights were removed than published
        sparsity = f"{100 * (1 - mine.density.mean()):.1f} % sparsity"
        evidence = f"{mine.value.mean():.2f} %{self._units(mine)} at {sparsity}, d = {d.mean:+.2f}{span(d)}"
        checks = (Check(d, -self.margin),)
        return Verdict(word, f"{evidence}, margin {self.margin}, n = {d.n}", d.n, checks=checks)

    def _units(self, mine: pd.DataFrame) -> str:
        if not mine.units.notna().all():
            return ""
        closed = 1 - mean(mine.natural if self.mask == "half" else mine.units)
        return f" with {100 * closed:.1f} % of the units closed,"


@register("floor")
class Floor(DensityRule):
    """A mean of at least `least`, in the unit of the metric; of at most `least` if a smaller value is better."""

    oriented: ClassVar[bool] = True

    least: float
    mask: Mask = "binary"

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = self.runs(rows, reading=self.mask)
        if mine.empty:
            return not_run()
        if problem := missed(mine, self.mask, self.density):
            return not_run(problem, absent=False)
        i, metric = stats.t_interval(list(mine.value)), metric_of(mine)
        up, form = metric.larger_is_better, f".{metric.digits}f"
        holds, fails = (i.low >= self.least, i.high < self.least) if up else (i.high <= self.least, i.low > self.least)
        required = f"at {'least' if up else 'most'} {self.least} required"
        evidence = f"{i.mean:{form}}{metric.unit}{span(i, form)}, {required}, n = {i.n}"
        return Verdict(decide(holds, fails), evidence, i.n, checks=(Check(i, self.least, above=up),))


@register("gap")
class Gap(DensityRule):
    """Binarising the gates lowers accuracy by at most `most` points."""

    most: float

    def judge(self, rows: pd.DataFrame) -> Verdict:
        soft, hard = self.runs(rows, reading="mean"), self.runs(rows, reading="half")
        if soft.empty:
            return not_run()
        d = paired(soft, hard)
        evidence = f"mean - half = {d.mean:+.2f} points{span(d)}, at most {self.most} allowed, n = {d.n}"
        checks = (Check(d, self.most, above=False),)
        return Verdict(decide(d.high <= self.most, d.low > self.most), evidence, d.n, checks=checks)
