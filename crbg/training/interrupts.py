"""Delay Ctrl-C while the state of a model is restored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. Only the main thread receives Ctrl-C, so other threads do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append((number, frame)))
    if before is None:  # the handler was not installed from Python and cannot be installed again
        before = signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked and callable(before):
            before(*asked[0])
