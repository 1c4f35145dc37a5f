"""The part of filelock that crbg uses, for machines where only torch and a few numeric packages are installed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

POLL = 0.05  # seconds between two attempts


class Timeout(TimeoutError):  # noqa: N818 (the name in filelock)
    """Another process holds the lock."""


class FileLock:
    """A lock on an open file by `flock`, as filelock takes it on Unix: both exclude each other."""

    def __init__(self, lock_file: str | Path, timeout: float = -1) -> None:
        self.path, self.timeout = Path(lock_file), timeout
        self._descriptor: int | None = None

    def acquire(self, timeout: float | None = None) -> FileLock:
        """Take the lock; wait at most `timeout` seconds, or forever if it is negative.

        Raises:
            Timeout: another process holds it.
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
        """Free the lock, if it is held."""
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
