"""Handle SIGTERM and Ctrl-C: end a run at its next step, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

CONTINUE = 75  # exit status if time ran out and a checkpoint was written: the same command resumes the run
INTERRUPTED = 130  # exit status after Ctrl-C, by the convention of shells


class Stop:
    """Context manager in which SIGTERM or Ctrl-C ends a run at its next step, after saving a checkpoint.

    A second signal ends the process at once. `status` is 0 until a signal arrives, and the exit status afterwards.
    """

    def __init__(self) -> None:
        self.status, self.before = 0, dict[int, Any]()

    def __call__(self) -> bool:
        return self.status != 0

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._asked) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: object) -> None:
        self.status = INTERRUPTED if number == signal.SIGINT else CONTINUE
        print(
            f"{signal.Signals(number).name}: stopping at the next step, with a checkpoint", file=sys.stderr, flush=True
        )
        self.__exit__()
