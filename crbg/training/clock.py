"""When a training stops, how often it is saved, and what it tells about its progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class OutOfTime(Exception):  # noqa: N818 - an outcome, not an error
    """The deadline came before the end; the checkpoint holds all that was done."""


class Collapse(Exception):  # noqa: N818
    """The loss is not finite, or nothing is left of a layer: an outcome to record, not a mistake to mend."""


@dataclass
class Clock:
    """When to stop, how often to save, and whom to tell.

    `deadline` is a time.monotonic() value; `report` receives (steps done, steps in all).
    """

    deadline: float = math.inf
    save_every: float = 60.0
    asked: Callable[[], bool] = lambda: False  # whether somebody asked the process to stop
    report: Callable[[int, int], None] = lambda done, total: None
    stop_after: int | None = None  # stop after this many steps of this process; tests interrupt a fit with it
    steps: int = field(default=0)
    earlier: float = 0.0  # seconds that attempts before this one have searched
    earlier_cpu: float = 0.0  # their processor seconds, of all threads: a pause does not count
    base: int = 0  # steps of this run before the present fit
    whole: int = 0  # steps of all fits of this run together, where that is known

    def over(self) -> bool:
        """Tell whether to stop now."""
        return (
            time.monotonic() >= self.deadline
            or self.asked()
            or (self.stop_after is not None and self.steps >= self.stop_after)
        )

    def count(self, done: int, total: int) -> None:
        """Note one more step of this process, the present fit's `done` of `total`, and report it."""
        self.steps += 1
        self.tell(done, total)

    def tell(self, done: int, total: int) -> None:
        """Report steps of the present fit as steps of the run."""
        whole = max(self.whole, total)
        self.report(min(self.base + done, whole), whole)
