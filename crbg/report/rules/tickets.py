"""Rules about the structure of a ticket: controls without training, controls with training, sparsity by depth."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from crbg.report import stats
from crbg.report.records_table import setting, values
from crbg.report.rules.base import DensityRule, Part, Rule, Verdict, compare, decide, not_run, register, span


@register("sanity")
class Sanity(DensityRule):
    """Without training, accuracy is low under every control: the upper end of each interval is at most its bound."""

    at_most: dict[Literal["reinit", "shuffle", "invert"], float]

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = self.runs(rows)
        if mine.empty:
            return not_run()
        parts, holds, refuted = [], True, False
        for control, bound in self.at_most.items():
            i = stats.t_interval(list(mine[control]))
            holds, refuted = holds and i.high <= bound, refuted or i.low > bound
            parts.append(f"{control} {i.mean:.1f} %{span(i, '.1f')}, bound {bound}")
        return Verdict(decide(holds, refuted), f"{'; '.join(parts)}, n = {len(mine)}", len(mine))


@register("passes")
class Passes(DensityRule):
    """Tickets pass the sanity checks: with training, every control lowers accuracy by more than the margin.

    If any control lowers it by less, the tickets fail. With `fail: true`, the claim is that they fail.
    """

    margin: float
    fail: bool = False
    part: Part = "test"

    def judge(self, rows: pd.DataFrame) -> Verdict:
        mine = values(rows, self.experiment, self.arm, self.density, part=self.part)
        by = {str(setting(str(text)).get("control")): g for text, g in mine.groupby("setting")}
        if "none" not in by or len(by) < 2:
            return not_run()
        losses = {name: compare(by["none"], g).difference for name, g in by.items() if name != "none"}
        passes = all(d.low > self.margin for d in losses.values())
        fails = any(d.high < self.margin for d in losses.values())
        parts = ", ".join(f"{name} costs {d.mean:.2f}{span(d, '.2f')}" for name, d in losses.items())
        n, where = min(map(len, by.values())), ", validation" if self.part == "validation" else ""
        evidence = f"{self.arm} at {self.density}: {parts}; margin {self.margin}, n = {n}{where}"
        return Verdict(decide(fails, passes) if self.fail else decide(passes, fails), evidence, n)


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
        return Verdict(decide(i.low > bound, i.high < bound), evidence, i.n)


@register("untestable")
class Untestable(Rule):
    """A claim that cannot be tested on the data set `on`, whatever the results; `why` gives the reason."""

    on: str
    why: str

    def judge(self, rows: pd.DataFrame) -> Verdict:
        return Verdict(f"not testable on {self.on}", self.why)
