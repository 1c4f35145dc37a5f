"""One writer of a run's folder, on this machine and on a file system that a cluster shares. Imports no torch.

The kernel's lock decides where it reaches: it is free again the moment its process dies, however it dies. Not every
network file system carries it to other hosts, so the owner also leaves its name beside it and touches that file while
it lives.
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
else:  # a bare machine
    from crbg.storage._flock import FileLock, Timeout

BEAT = 20.0  # seconds between two signs of life
SILENT = 90.0  # an owner on another host that has not been heard of for so long is dead


class HeldError(CrbgError):
    """Another process works on this folder; the message names it."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only writer of `folder` within the block.

    A lock whose owner died is taken over: at once on the host where it died, after `SILENT` seconds from another host.

    Raises:
        HeldError: another living process has it.
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
    """Say who this process is: host, process and, on a cluster, job."""
    out: dict[str, str | int] = {"host": socket.gethostname(), "pid": os.getpid()}
    if job := os.environ.get("SLURM_JOB_ID"):
        out["slurm_job"] = job
    return out


def owner(folder: Path) -> dict[str, str | int]:
    """Read who holds, or died holding, a folder; empty if nobody does."""
    try:
        found = json.loads((folder / "owner.json").read_text())
        return dict(found) if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def held(folder: Path) -> str:
    """Name the living owner of a folder, or return an empty string."""
    if not owner(folder):
        return ""
    try:
        with FileLock(folder / "lock", timeout=0):
            return words(owner(folder)) if _alive_elsewhere(folder) else ""
    except Timeout:
        return words(owner(folder))


def words(who: dict[str, str | int]) -> str:
    """Put an owner into words."""
    job = f", SLURM job {who['slurm_job']}" if "slurm_job" in who else ""
    return f"process {who.get('pid', '?')} on {who.get('host', '?')}{job}"


def _alive_elsewhere(folder: Path) -> bool:
    """Tell whether an owner on another host was alive recently; on this host the kernel's lock decides."""
    who = owner(folder)
    return bool(who) and who.get("host") != socket.gethostname() and _age(folder / "owner.json") < SILENT


def _held(folder: Path) -> str:
    who = owner(folder)
    return f"another process is working on {folder}" + (f": {words(who)}" if who else "")


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            os.utime(path)
        except OSError:  # a full or vanished disk is the run's to report
            continue


def _age(path: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system that both hosts share."""
    probe = path.with_name(f".clock-{os.getpid()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - path.stat().st_mtime
    except OSError:
        return time.time() - path.stat().st_mtime if path.exists() else float("inf")
