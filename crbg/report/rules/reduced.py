"""Rules for runs whose schedule is far shorter than the published one."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from crbg.report.declared import Declared
from crbg.report.records_table import values
from crbg.report.rules.base import ArmRule, Verdict, collapsed, count

ENOUGH = 3  # seeds from which on runs of a reduced schedule may confirm a claim


class Schedule(Declared):
    """How long the runs are and the published ones were, and which runs would decide the claim.

    With `confirms: false` the schedule is too short to confirm the claim.
    """

    epochs: int
    published_epochs: int | str
    decides: str
    confirms: bool = True


class Reduced(Declared):
    """A rule with its schedule. Three seeds or more may confirm a claim; no number of seeds refutes one."""

    rule: ArmRule
    schedule: Schedule

    def judge(self, kind: str, rows: pd.DataFrame) -> Verdict:
        """Judge a claim of this kind: anything but a confirmation is `observed`.

        A cost is only observed, because it depends on the schedule. So are runs of which some collapsed or missed
        their density.
        """
        rule = self.rule
        mine = {d: values(rows, rule.experiment, rule.arm, d) for d in rule.densities}
        missed = sum(int(found.density_missed.eq(True).sum()) for found in mine.values())
        lost = sum(collapsed(rows, rule.experiment, rule.arm, d) for d in rule.densities if d is not None)
        found = rule.judge(rows.assign(density_missed=False))
        if found.absent and not lost:
            return found
        parts = [found.evidence]
        if found.seeds is None:
            parts += [f"{rule.arm} {f.accuracy.mean():.2f} %, n = {len(f)}" for f in mine.values() if len(f)]
        parts += [f"density missed in {count(missed, 'run')} of {rule.arm}"] if missed else []
        parts += [f"{count(lost, 'run')} of {rule.arm} ended without a ticket"] if lost else []
        parts += [self._length(rows), f"what would decide: {self.schedule.decides}"]
        sound = not missed and not lost and (found.seeds or 0) >= ENOUGH
        confirmed = found.word in ("exceeded", "reproduced") and kind != "cost" and self.schedule.confirms
        return Verdict(found.word if sound and confirmed else "observed", "; ".join(parts), found.seeds)

    def _length(self, rows: pd.DataFrame) -> str:
        """Say for how many epochs the runs were trained, whatever was declared, and how many were published."""
        mine = rows[(rows.experiment == self.rule.experiment) & (rows.arm == self.rule.arm)]
        ran, said = sorted({int(e) for e in mine.epochs}), self.schedule
        declared = "" if ran == [said.epochs] else f", {said.epochs} declared"
        epochs = " and ".join(map(str, ran))
        return f"reduced schedule of {epochs} epochs{declared} (published: {said.published_epochs})"


def split(raw: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Split an entry into the fields of its schedule and those of its rule."""
    schedule = {k: v for k, v in raw.items() if k in Schedule.model_fields}
    return schedule, {k: v for k, v in raw.items() if k not in schedule}
