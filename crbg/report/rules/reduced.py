"""Rules for runs on a far shorter schedule than the published one."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from crbg.report.declared import Declared
from crbg.report.records_table import values
from crbg.report.rules.base import ArmRule, Verdict, collapsed, count

ENOUGH = 3  # smallest number of seeds with which runs on a reduced schedule may confirm a claim


class Schedule(Declared):
    """The epochs of our runs and of the published ones, and `decides`: the runs that would decide the claim.

    With `confirms: false`, the schedule is too short to confirm the claim.
    """

    epochs: int
    published_epochs: int | str
    decides: str
    confirms: bool = True


class Reduced(Declared):
    """A rule for runs on a reduced schedule. With three seeds or more, they may confirm a claim, never refute it."""

    rule: ArmRule
    schedule: Schedule

    def judge(self, kind: str, rows: pd.DataFrame) -> Verdict:
        """Judge a claim of kind `kind`: any outcome other than a confirmation is `observed`.

        The outcome of a claim about cost is always `observed`, because the cost depends on the schedule. The outcome is
        also `observed` if some runs collapsed or did not reach their target density.
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
            parts += [f"{rule.arm} {f.value.mean():.2f} %, n = {len(f)}" for f in mine.values() if len(f)]
        parts += [f"{count(missed, 'run')} of {rule.arm} did not reach the target density"] if missed else []
        parts += [f"{count(lost, 'run')} of {rule.arm} ended without a ticket"] if lost else []
        parts += [self._length(rows), f"runs that would decide: {self.schedule.decides}"]
        sound = not missed and not lost and (found.seeds or 0) >= ENOUGH
        confirmed = found.word in ("exceeded", "reproduced") and kind != "cost" and self.schedule.confirms
        return Verdict(found.word if sound and confirmed else "observed", "; ".join(parts), found.seeds)

    def _length(self, rows: pd.DataFrame) -> str:
        """Say how many epochs the runs had, how many were declared if that differs, and how many were published."""
        mine = rows[(rows.experiment == self.rule.experiment) & (rows.arm == self.rule.arm)]
        ran, said = sorted({int(e) for e in mine.epochs}), self.schedule
        declared = "" if ran == [said.epochs] else f", {said.epochs} declared"
        epochs = " and ".join(map(str, ran))
        return f"reduced schedule of {epochs} epochs{declared} (published: {said.published_epochs})"


def split(raw: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Split an entry into the fields of its schedule and the fields of its rule."""
    schedule = {k: v for k, v in raw.items() if k in Schedule.model_fields}
    return schedule, {k: v for k, v in raw.items() if k not in schedule}
