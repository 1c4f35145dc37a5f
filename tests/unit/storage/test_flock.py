"""The fallback lock for machines without `filelock` and the lock of `filelock` exclude each other."""

import threading
import time

import filelock
import pytest

from crbg.storage import _flock

KINDS = [(filelock.FileLock, filelock.Timeout), (_flock.FileLock, _flock.Timeout)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("second", [0, 1])
def test_one_lock_excludes_another(tmp_path, first, second):
    holder, (kind, timeout) = KINDS[first][0](tmp_path / "lock"), KINDS[second]
    other = kind(tmp_path / "lock")
    holder.acquire(timeout=0)
    with pytest.raises(timeout):
        other.acquire(timeout=0)
    holder.release()
    other.acquire(timeout=0)
    other.release()


def test_it_waits_as_long_as_it_is_told_to(tmp_path):
    holder, other = (_flock.FileLock(tmp_path / "lock") for _ in range(2))
    holder.acquire()
    begin = time.monotonic()
    with pytest.raises(_flock.Timeout):
        other.acquire(timeout=0.2)
    assert time.monotonic() - begin >= 0.2
    threading.Timer(0.2, holder.release).start()
    with other:
        assert time.monotonic() - begin >= 0.4
