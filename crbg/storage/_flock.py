"""Replacement for the part of `filelock` that crbg uses, for machines on which `filelock` is not installed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

POLL = 0.05  # seconds between attempts


class Timeout(TimeoutError):  # noqa: N818 (same name as in filelock)
    """Another process holds the lock."""


class FileLock:
    """A lock based on `flock`, which `filelock` also uses on Unix, so the two implementations exclude each other."""

    def __init__(self, lock_file: str | Path, timeout: float = -1) -> None:
        self.path, self.timeout = Path(lock_file), timeout
        self._descriptor: int | None = None

    def acquire(self, timeout: float | None = None) -> FileLock:
        """Acquire the lock; wait at most `timeout` seconds, or without limit if `timeout` is negative.

        Raises:
            Timeout: another process still holds the lock.
        """
        patience = self.timeout if timeout is None else timeout
        give_up = time.monotonic() + patience
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._descriptor = descriptor
                return self
            if patience >= 0 and time.monotonic() >= give_up:
                os.close(descriptor)
                raise Timeout(str(self.path))
            time.sleep(POLL)

    def release(self) -> None:
        """Release the lock if this object holds it."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
