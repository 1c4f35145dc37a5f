"""Rules about a sweep over the width of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from crbg.report import stats
from crbg.report.published import width_points
from crbg.report.records_table import by_width
from crbg.report.rules.base import ArmRule, Check, Mask, Verdict, decide, not_run, register, span


def _widths(rows: pd.DataFrame, experiment: str, arm: str, reading: str = "binary") -> dict[float, list[float]]:
    """Return the test accuracies of an arm by the number of weights, in % of the largest network."""
    mine = rows[(rows.experiment == experiment) & (rows.part == "test") & (rows.reading == reading)]
    return by_width(mine).get(arm, {})


@register("width")
class Width(ArmRule):
    """Each published point of the width sweep is reached within the margin."""

    margin: float

    def judge(self, rows: pd.DataFrame) -> Verdict:
        ours = _widths(rows, self.experiment, self.arm)
        if not ours:
            return not_run()
        found = self._against(ours)
        words = [word for word, _, _ in found]
        soft = _widths(rows, self.experiment, self.arm, "mean")
        real = f" ({_reached(self._against(soft))} by the real-valued gates)" if soft else ""
        word = decide(_reached(found) == len(words), "not reproduced" in words)
        if all(w == "exceeded" for w in words):
            word = "exceeded"
        n = min(len(v) for v in ours.values())
        points = ", ".join(text for _, text, _ in found)
        checks = tuple(Check(d, -self.margin) for _, _, d in found if d)
        evidence = f"{_reached(found)} of {len(words)} points reached{real}; ours minus theirs by share of weights: "
        return Verdict(word, f"{evidence}{points}; n = {n}", n, checks=checks)

    def _against(self, ours: Mapping[float, list[float]]) -> list[tuple[str, str, stats.Interval | None]]:
        """Judge each published point by our network with the nearest number of weights."""
        found = []
        for point in width_points():
            near = min(ours, key=lambda w: abs(w - point["weights"]))
            word, d = stats.value_verdict(ours[near], point["accuracy"], self.margin)
            found.append((word, f"{near:.1f} %: {d.mean:+.1f}" if d else "", d))
        return found


def _reached(found: list[tuple[str, str, stats.Interval | None]]) -> int:
    return sum(word in ("exceeded", "reproduced") for word, _, _ in found)


@register("steady")
class Steady(ArmRule):
    """The gap to a reference arm grows by at most `most` points when the network becomes narrower.

    At each width, the change of the gap is its difference from the gap of the widest network. Networks with less than
    `down_to` % of the weights of the widest one are reported but do not decide.
    """

    reference: str
    most: float
    mask: Mask = "binary"
    down_to: float = 0.0

    def judge(self, rows: pd.DataFrame) -> Verdict:
        ours = _widths(rows, self.experiment, self.arm, self.mask)
        theirs = _widths(rows, self.experiment, self.reference)
        shared = sorted(set(ours) & set(theirs), reverse=True)
        if len(shared) < 2:
            return not_run()
        gaps = {w: stats.welch(theirs[w], ours[w]).difference for w in shared}
        full, *narrow = shared
        changes = {w: _change(gaps[w], gaps[full]) for w in narrow}
        judged = [d for w, d in changes.items() if w >= self.down_to]
        if not judged:
            return not_run(f"no network with {self.down_to:g} % of the weights or more")
        word = decide(all(d.high <= self.most for d in judged), any(d.low > self.most for d in judged))
        text = ", ".join(f"{w:.1f} %: {d.mean:+.1f}{span(d, '+.1f')}" for w, d in changes.items())
        n = min(d.n for d in gaps.values())
        evidence = f"{self.reference} - {self.arm} is {gaps[full].mean:.1f} points at full width; it changes by {text} "
        evidence += f"(share of weights); at most {self.most:+} allowed down to {self.down_to:g} %, n = {n}"
        return Verdict(word, evidence, n, checks=tuple(Check(d, self.most, above=False) for d in judged))


def _change(narrow: stats.Interval, full: stats.Interval) -> stats.Interval:
    """Return the difference of two independent gaps, with the degrees of freedom of the smaller number of seeds."""
    n, mean, error = min(narrow.n, full.n), narrow.mean - full.mean, math.hypot(narrow.error, full.error)
    reach = stats.t_reach(error, n)
    return stats.Interval(mean, mean - reach, mean + reach, n, error)
