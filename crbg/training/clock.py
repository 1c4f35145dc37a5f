"""The clock of a training: its deadline, the interval of checkpoints, and reports of progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class OutOfTime(Exception):  # noqa: N818 - an outcome, not an error
    """The deadline passed before the training ended; the checkpoint holds its state."""


class Collapse(Exception):  # noqa: N818 - an outcome, not an error
    """The training failed numerically: the loss is not finite, or a layer lost all its weights."""


@dataclass
class Clock:
    """When a training stops, how often it saves a checkpoint, and who is informed of its progress.

    A run may call `fit` several times; the clock counts the steps of all of them.

    Attributes:
        deadline: When to stop, a value of `time.monotonic()`.
        save_every: Seconds between two checkpoints.
        asked: Returns whether the process was asked to stop.
        report: Called with the number of steps done and in total, after every step.
        stop_after: Stop after this number of steps of this process; tests use it.
        steps: Steps of this process so far.
        earlier: Seconds of search in earlier attempts at this run.
        earlier_cpu: CPU seconds of all threads in earlier attempts, in which a suspended process does not count.
        base: Steps of the fits of this run that have ended.
        whole: Steps of all fits of this run, if known.
    """

    deadline: float = math.inf
    save_every: float = 60.0
    asked: Callable[[], bool] = lambda: False
    report: Callable[[int, int], None] = lambda done, total: None
    stop_after: int | None = None
    steps: int = field(default=0)
    earlier: float = 0.0
    earlier_cpu: float = 0.0
    base: int = 0
    whole: int = 0

    def over(self) -> bool:
        """Return whether to stop now."""
        return (
            time.monotonic() >= self.deadline
            or self.asked()
            or (self.stop_after is not None and self.steps >= self.stop_after)
        )

    def count(self, done: int, total: int) -> None:
        """Count one step of this process, and report that the current fit has done `done` of `total` steps."""
        self.steps += 1
        self.tell(done, total)

    def tell(self, done: int, total: int) -> None:
        """Report the progress of the current fit as progress of the whole run."""
        whole = max(self.whole, total)
        self.report(min(self.base + done, whole), whole)
