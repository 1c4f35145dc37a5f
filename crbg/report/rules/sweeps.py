"""Rules about ablation settings, on validation images: order of two values, control of sparsity, flat accuracy."""

from __future__ import annotations

import pandas as pd

from crbg.report import stats
from crbg.report.records_table import setting
from crbg.report.rules.base import ArmRule, Check, Verdict, decide, not_run, paired, register, span


def cells(rows: pd.DataFrame, rule: ArmRule) -> dict[str, pd.DataFrame]:
    """Return the binary validation rows of a rule's arm by setting, ordered by seed."""
    mine = rows[(rows.experiment == rule.experiment) & (rows.arm == rule.arm)]
    mine = mine[(mine.part == "validation") & (mine.reading == "binary")].sort_values("seed")
    return {str(k): g for k, g in mine.groupby("setting", sort=False)}


@register("order")
class Order(ArmRule):
    """Value `a` of a field gives a better ticket than `b`, each with its best other settings, on validation."""

    field: str
    a: str
    b: str

    def judge(self, rows: pd.DataFrame) -> Verdict:
        best: dict[str, pd.DataFrame] = {}
        for text, g in cells(rows, self).items():
            kind = setting(text).get(self.field, "")
            if kind in (self.a, self.b) and (kind not in best or g.value.mean() > best[kind].value.mean()):
                best[kind] = g
        if len(best) < 2:
            return not_run()
        d = paired(best[self.a], best[self.b])
        ends = (
            f"{k} {g.value.mean():.2f} % at {100 * (1 - g.density.mean()):.1f} % sparsity ({g.setting.iloc[0]})"
            for k, g in best.items()
        )
        evidence = f"{'; '.join(ends)}; difference {d.mean:+.2f}{span(d)}, n = {d.n}, validation"
        return Verdict(decide(d.low > 0, d.high < 0), evidence, d.n, checks=(Check(d, 0.0),))


@register("controls")
class Controls(ArmRule):
    """An option controls sparsity: for each `other`, sparsity is higher at the largest `knob` than at the smallest."""

    knob: str
    other: str

    def judge(self, rows: pd.DataFrame) -> Verdict:
        by: dict[float, dict[float, list[float]]] = {}
        for text, g in cells(rows, self).items():
            said = setting(text)
            held = by.setdefault(float(said[self.other]), {})
            held[float(said[self.knob])] = list(100 * (1 - g.density))
        if not by or min(map(len, by.values())) < 2:
            return not_run()
        rises = {held: stats.paired(c[max(c)], c[min(c)]).difference for held, c in sorted(by.items())}
        word = decide(all(d.low > 0 for d in rises.values()), any(d.high <= 0 for d in rises.values()))
        parts = ", ".join(f"{d.mean:+.1f}{span(d, '+.1f')} at {self.other} {held:g}" for held, d in rises.items())
        means = [[sum(c[k]) / len(c[k]) for c in by.values()] for k in next(iter(by.values()))]
        spans = [max(m) - min(m) for m in means]
        n = min(d.n for d in rises.values())
        evidence = f"from the smallest to the largest {self.knob}, sparsity changes (in points) by {parts}; "
        evidence += f"over the range of {self.other}, by {sum(spans) / len(spans):.1f} on average"
        checks = tuple(Check(d, 0.0) for d in rises.values())
        return Verdict(word, f"{evidence}, n = {n}, validation", n, checks=checks)


@register("flat")
class Flat(ArmRule):
    """Accuracy stays near its best over a range: the worst setting is at most `most` points below the best.

    over: in every setting, the final share of open gates may deviate from its budget by at most this relative amount.
    """

    most: float
    over: float | None = None

    def judge(self, rows: pd.DataFrame) -> Verdict:
        found = cells(rows, self)
        if len(found) < 2:
            return not_run()
        best, worst = (pick(found.values(), key=lambda g: g.value.mean()) for pick in (max, min))
        d = stats.welch(list(best.value), list(worst.value)).difference
        word = decide(d.high <= self.most, d.low > self.most)
        ends = " and ".join(f"{g.value.mean():.2f} % at {g.setting.iloc[0]}" for g in (best, worst))
        evidence = f"{ends}: {d.mean:.2f} points{span(d, '.2f')}, at most {self.most} allowed"
        if self.over is not None:
            g = max(found.values(), key=lambda g: g.over.abs().mean())
            word = word if g.over.abs().mean() <= self.over else "not reproduced"
            evidence += f"; {100 * g.over.mean():+.1f} % off the budget at {g.setting.iloc[0]}, "
            evidence += f"at most {100 * self.over:g} % allowed"
        checks = (Check(d, self.most, above=False),)
        return Verdict(word, f"{evidence}, n = {d.n}, validation", d.n, checks=checks)
