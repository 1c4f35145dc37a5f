"""Rules about a sweep over the width of the network."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from crbg.report import stats
from crbg.report.published import width_points
from crbg.report.records_table import by_width
from crbg.report.rules.base import ArmRule, Mask, Verdict, decide, not_run, register


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
        words = [word for word, _ in found]
        soft = _widths(rows, self.experiment, self.arm, "mean")
        real = f" ({_reached(self._against(soft))} by the real-valued gates)" if soft else ""
        word = decide(_reached(found) == len(words), "not reproduced" in words)
        if all(w == "exceeded" for w in words):
            word = "exceeded"
        n = min(len(v) for v in ours.values())
        points = ", ".join(text for _, text in found)
        evidence = f"{_reached(found)} of {len(words)} points reached{real}; ours minus theirs by share of weights: "
        return Verdict(word, f"{evidence}{points}; n = {n}", n)

    def _against(self, ours: Mapping[float, list[float]]) -> list[tuple[str, str]]:
        """Judge each published point by our network with the nearest number of weights."""
        found = []
        for point in width_points():
            near = min(ours, key=lambda w: abs(w - point["weights"]))
            word, d = stats.value_verdict(ours[near], point["accuracy"], self.margin)
            found.append((word, f"{near:.1f} %: {d.mean:+.1f}" if d else ""))
        return found


def _reached(found: list[tuple[str, str]]) -> int:
    return sum(word in ("exceeded", "reproduced") for word, _ in found)


@register("steady")
class Steady(ArmRule):
    """The gap to a reference arm is at most `most` points at every width."""

    reference: str
    most: float
    mask: Mask = "binary"

    def judge(self, rows: pd.DataFrame) -> Verdict:
        ours = _widths(rows, self.experiment, self.arm, self.mask)
        theirs = _widths(rows, self.experiment, self.reference)
        shared = sorted(set(ours) & set(theirs), reverse=True)
        if not shared:
            return not_run()
        gaps = {w: stats.welch(theirs[w], ours[w]).difference for w in shared}
        word = decide(all(d.high <= self.most for d in gaps.values()), any(d.low > self.most for d in gaps.values()))
        text = ", ".join(f"{w:.1f} %: {d.mean:.1f}" for w, d in gaps.items())
        n = min(d.n for d in gaps.values())
        evidence = f"{self.reference} - {self.arm} by share of weights: {text}; at most {self.most} allowed"
        return Verdict(word, f"{evidence}, n = {n}", n)
