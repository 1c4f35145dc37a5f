"""The clock of a training run: deadline, checkpoint interval and progress reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class OutOfTime(Exception):  # noqa: N818 - an outcome, not an error
    """The deadline passed before training ended; the checkpoint contains the training state."""


class Collapse(Exception):  # noqa: N818 - an outcome, not an error
    """Training failed numerically: the loss is not finite, or a layer lost all its weights."""


@dataclass
class Clock:
    """Deadline, checkpoint interval and progress reports of a training run.

    A run may call `fit` several times; the clock counts the steps of all calls.

    Attributes:
        deadline: Time at which to stop, as a value of `time.monotonic()`.
        save_every: Seconds between two checkpoints.
        asked: Function that returns whether the process was asked to stop.
        report: Function called after every step with the number of steps done and the total number of steps.
        stop_after: Number of steps after which this process stops; used in tests.
        steps: Number of steps that this process has done so far.
        earlier: Wall-clock seconds of search in earlier attempts at this run.
        earlier_cpu: CPU seconds of all threads in earlier attempts; time during which the process was suspended is
            excluded.
        base: Total number of steps in the calls to `fit` that this run has finished so far.
        whole: Total number of steps of all calls to `fit` in this run, if known.
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
        """Return whether training has to stop now."""
        return (
            time.monotonic() >= self.deadline
            or self.asked()
            or (self.stop_after is not None and self.steps >= self.stop_after)
        )

    def count(self, done: int, total: int) -> None:
        """Count one step of this process, and report that this call to `fit` has done `done` of `total` steps."""
        self.steps += 1
        self.tell(done, total)

    def tell(self, done: int, total: int) -> None:
        """Convert progress within the current `fit` call into progress of the whole run, and report it."""
        whole = max(self.whole, total)
        self.report(min(self.base + done, whole), whole)
