"""Rules about the structure of a ticket: controls without training, controls with training, sparsity by depth."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from crbg.report import stats
from crbg.report.records_table import setting, values
from crbg.report.rules.base import (
    ArmRule,
    Check,
    DensityRule,
    Part,
    Rule,
    Verdict,
    compare,
    decide,
    not_run,
    register,
    span,
)

SANITY_MARGIN = 0.5  # in points: every sanity check with training is judged with this margin


@register("sanity")
class Sanity(DensityRule):
    """Without training, accuracy is low under every control: the upper end of each interval is at most its bound."""

    at_most: dict[Literal["reinit", "shuffle", "invert"], float]

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = self.runs(rows)
        if mine.empty:
            return not_run()
        checks, parts = [], []
        for control, bound in self.at_most.items():
            i = stats.t_interval(list(mine[control]))
            checks.append(Check(i, bound, above=False))
            parts.append(f"{control} {i.mean:.1f} %{span(i, '.1f')}, bound {bound}")
        holds = all(c.interval.high <= c.bound for c in checks)
        word = decide(holds, any(c.interval.low > c.bound for c in checks))
        return Verdict(word, f"{'; '.join(parts)}, n = {len(mine)}", len(mine), checks=tuple(checks))


@register("passes")
class Passes(DensityRule):
    """Tickets pass the sanity checks: with training, every control lowers accuracy by more than SANITY_MARGIN.

    If any control lowers it by less, the tickets fail. With `fail: true`, the claim is that they fail.
    """

    fail: bool = False
    part: Part = "test"

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = values(rows, self.experiment, self.arm, self.density, part=self.part)
        by = {str(setting(str(text)).get("control")): g for text, g in mine.groupby("setting")}
        if "none" not in by or len(by) < 2:
            return not_run()
        losses = {name: compare(by["none"], g).difference for name, g in by.items() if name != "none"}
        passes = all(d.low > SANITY_MARGIN for d in losses.values())
        fails = any(d.high < SANITY_MARGIN for d in losses.values())
        parts = ", ".join(f"{name} costs {d.mean:.2f}{span(d, '.2f')}" for name, d in losses.items())
        n, where = min(map(len, by.values())), ", validation" if self.part == "validation" else ""
        evidence = f"{self.arm} at {self.density}: {parts}; margin {SANITY_MARGIN}, n = {n}{where}"
        word = decide(fails, passes) if self.fail else decide(passes, fails)
        checks = tuple(Check(d, SANITY_MARGIN, above=not self.fail) for d in losses.values())
        return Verdict(word, evidence, n, checks=checks, every=not self.fail)


@register("deeper")
class Deeper(DensityRule):
    """Deeper layers are sparser: rank correlation of sparsity with depth in each run, controlling for layer size.

    Large layers can be sparser at any depth, and in many networks the deep layers are the large ones. The claim holds
    if the whole interval is above the value that 95 % of random layer orders stay below, and fails if it is below.
    """

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = self.runs(rows)
        mine = mine[mine.depth_alone.notna()]
        if mine.empty:
            return not_run()
        i, bound = stats.t_interval([float(d) for d in mine.depth_alone]), float(mine.by_chance.max())
        evidence = (
            f"rank correlation of layer sparsity with depth, controlling for layer size, is {i.mean:+.2f}{span(i)} "
            f"over {int(mine.tensors.max())} layers; layers in random order give up to {bound:.2f}; "
            f"with depth alone {mine.depth.mean():+.2f}, with size alone {mine.by_size.mean():+.2f}, n = {i.n}"
        )
        return Verdict(decide(i.low > bound, i.high < bound), evidence, i.n, checks=(Check(i, bound),))


@register("silent")
class Silent(ArmRule):
    """Fewer hidden units are silent (same activation for every image) than in the networks of arm `other`."""

    other: str

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = rows[(rows.experiment == self.experiment) & (rows.reading == "binary") & rows.silent.notna()]
        counts = [
            g.assign(value=g.silent.astype(float)) for g in (mine[mine.arm == self.arm], mine[mine.arm == self.other])
        ]
        if counts[0].empty or counts[1].empty:
            return not_run()
        d = compare(counts[1], counts[0], oriented=False).difference
        ends = " and ".join(
            f"{g.value.mean():.1f} in {name}" for g, name in zip(counts, (self.arm, self.other), strict=True)
        )
        evidence = f"silent hidden units: {ends}; difference {d.mean:.1f}{span(d, '.1f')}, n = {d.n}"
        return Verdict(decide(d.low > 0, d.high < 0), evidence, d.n, checks=(Check(d, 0.0),))


@register("objective")
class Objective(DensityRule):
    """Before training, tickets have a higher (worse) value of `objective` than the tickets of each of `others`."""

    objective: str
    others: tuple[str, ...]

    def judge(self, rows: pd.DataFrame) -> Verdict:
        column = f"objective_{self.objective}"
        found = {arm: self.runs(rows, arm) for arm in (self.arm, *self.others)}
        found = {arm: g.assign(value=g[column].astype(float)).dropna(subset=["value"]) for arm, g in found.items()}
        if missing := [arm for arm, g in found.items() if g.empty]:
            return not_run(f"no values of this objective for {', '.join(missing)}")
        mine = found.pop(self.arm)
        worse = {arm: compare(mine, g, oriented=False).difference for arm, g in found.items()}
        parts = ", ".join(f"{d.mean:+.3g}{span(d, '+.3g')} against {arm}" for arm, d in worse.items())
        n = min(d.n for d in worse.values())
        word = decide(all(d.low > 0 for d in worse.values()), any(d.high < 0 for d in worse.values()))
        evidence = f"{self.arm} at {self.density}, {self.objective} before training: {parts}; n = {n}"
        return Verdict(word, evidence, n, checks=tuple(Check(d, 0.0) for d in worse.values()))


@register("untestable")
class Untestable(Rule):
    """A claim that cannot be tested on the data set `on`, whatever the results; `why` gives the reason."""

    on: str
    why: str

    def judge(self, rows: pd.DataFrame) -> Verdict:
        return Verdict(f"not testable on {self.on}", self.why)
