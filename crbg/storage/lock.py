"""Locks that allow one writer per run folder, on one machine or a shared file system. Does not import torch.

Processes on one host exclude each other by a kernel lock, which is released as soon as its process dies for any reason.
Not every network file system propagates this lock to other hosts. Therefore, the owner also identifies
itself in a file next to the lock, and updates the time stamp of this file for as long as it is alive.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crbg.errors import CrbgError
from crbg.storage.atomic import write_json

if TYPE_CHECKING or importlib.util.find_spec("filelock"):
    from filelock import FileLock as FileLock
    from filelock import Timeout as Timeout
else:  # a machine without filelock
    from crbg.storage._flock import FileLock, Timeout

BEAT = 20.0  # seconds between updates of the owner's time stamp
SILENT = 90.0  # seconds without an update after which an owner on another host is considered dead


class HeldError(CrbgError):
    """Another process holds the lock on a folder; the message names the process."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock on `folder` inside the block, so that this process is its only writer.

    The lock of a dead process is taken over: at once if it ran on this host, after `SILENT` seconds if on another.

    Raises:
        HeldError: another live process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sign = folder / "owner.json"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise HeldError(_held(folder)) from None
    try:
        if _alive_elsewhere(folder):
            raise HeldError(_held(folder))
        write_json(sign, me())
        ended = threading.Event()
        thread = threading.Thread(target=_beat, args=(sign, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            sign.unlink(missing_ok=True)
    finally:
        lock.release()


def me() -> dict[str, str | int]:
    """Return the host, the process ID and, under SLURM, the job ID of this process."""
    out: dict[str, str | int] = {"host": socket.gethostname(), "pid": os.getpid()}
    if job := os.environ.get("SLURM_JOB_ID"):
        out["slurm_job"] = job
    return out


def owner(folder: Path) -> dict[str, str | int]:
    """Return the process that holds the lock on a folder or died holding it; empty if there is none."""
    try:
        found = json.loads((folder / "owner.json").read_text())
        return dict(found) if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def held(folder: Path) -> str:
    """Return a text that names the live owner of a folder, or an empty string if there is none."""
    if not owner(folder):
        return ""
    try:
        with FileLock(folder / "lock", timeout=0):
            return words(owner(folder)) if _alive_elsewhere(folder) else ""
    except Timeout:
        return words(owner(folder))


def words(who: dict[str, str | int]) -> str:
    """Format an owner for messages."""
    job = f", SLURM job {who['slurm_job']}" if "slurm_job" in who else ""
    return f"process {who.get('pid', '?')} on {who.get('host', '?')}{job}"


def _alive_elsewhere(folder: Path) -> bool:
    """Return whether the owner is on another host and was alive recently. The kernel lock covers this host."""
    who = owner(folder)
    return bool(who) and who.get("host") != socket.gethostname() and _age(folder / "owner.json") < SILENT


def _held(folder: Path) -> str:
    who = owner(folder)
    return f"another process is working on {folder}" + (f": {words(who)}" if who else "")


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            os.utime(path)
        except OSError:  # the run itself reports a full or missing disk
            continue


def _age(path: Path) -> float:
    """Return the seconds since the owner's last update, by the clock of the file system that both hosts share."""
    probe = path.with_name(f".clock-{os.getpid()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - path.stat().st_mtime
    except OSError:
        return time.time() - path.stat().st_mtime if path.exists() else float("inf")
