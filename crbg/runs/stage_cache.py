"""Cache of stages that several runs share: dense training, levels of iterative pruning, one search for all controls.

A stage is stored under the digest of everything on which it depends, and read by every run that needs it. Its seconds
and steps are added to each of these runs, so that the cost of a run is the same as without the cache.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crbg.storage import lock
from crbg.storage.atomic import write_bytes
from crbg.training import distributed
from crbg.training.clock import Clock

VERSION = 1  # increased whenever the numerical results of any stage change
PATIENCE = 20.0  # seconds to wait for a stage that another run is computing, before this run is postponed


@dataclass(frozen=True)
class _Stored:
    """A stored stage and its cost."""

    tensors: dict[str, Tensor]
    seconds: float
    steps: int
    cpu_seconds: float


@dataclass(frozen=True)
class StageCache:
    """The shared stages of all runs with the same network, data and seed.

    Attributes:
        folder: Folder in which stages are stored.
        of: Everything on which all stages of this cache depend; `parts` adds what one stage depends on.
        clock: Clock to which the recorded time and steps of stages loaded from the cache are added.
    """

    folder: Path
    of: Mapping[str, Any]
    clock: Clock

    def path(self, name: str, parts: Mapping[str, Any]) -> Path:
        """Return the path of a stage."""
        text = json.dumps({"of": dict(self.of), "parts": dict(parts), "version": VERSION}, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"

    def __call__(self, name: str, parts: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a stage; if they are not stored, compute them with `make` and store them.

        If several processes share a run, the first one reads and writes for all of them.

        Raises:
            HeldError: another run is computing the stage.
        """
        path = self.path(name, parts)
        with ExitStack() as stack:
            stored = self._read(path) if distributed.first() else None
            if distributed.first() and stored is None:
                _claim(stack, path.with_suffix(".making"))
                stored = self._read(path)  # another run may have stored it in the meantime
            if distributed.size() > 1:
                stored = distributed.broadcast(stored)
            if stored is None:
                return self._make(path, make)
            self.clock.earlier += stored.seconds
            self.clock.base += stored.steps
            self.clock.earlier_cpu += stored.cpu_seconds
            return stored.tensors

    def _make(self, path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute a stage and store it with its cost, which includes the cost of the stages that it uses."""
        began, earlier, base = time.monotonic(), self.clock.earlier, self.clock.base
        began_cpu, earlier_cpu = time.process_time(), self.clock.earlier_cpu
        made = {n: t.detach().cpu().contiguous() for n, t in make().items()}
        seconds = time.monotonic() - began + self.clock.earlier - earlier
        cpu = time.process_time() - began_cpu + self.clock.earlier_cpu - earlier_cpu
        # If locks do not work across machines, another run may have stored the stage first; its file is kept.
        if distributed.first() and not path.exists():
            about = {"seconds": repr(seconds), "steps": str(self.clock.base - base), "cpu_seconds": repr(cpu)}
            write_bytes(path, save(made, about))
        return made

    def _read(self, path: Path) -> _Stored | None:
        """Return a stored stage, or None if there is none. A damaged file is deleted with a warning."""
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                about, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - no mapping
            seconds = float(about["seconds"])
            return _Stored(tensors, seconds, int(about["steps"]), float(about.get("cpu_seconds", seconds)))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}): it is computed again", stacklevel=2)
            path.unlink(missing_ok=True)
            return None


def _claim(stack: ExitStack, folder: Path) -> None:
    """Acquire the lock of a stage and hold it until the stack is closed. Wait if another run holds it.

    Raises:
        HeldError: another run still holds the lock after `PATIENCE` seconds, and this run has only one process.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            stack.enter_context(lock.hold(folder))
            return
        except lock.HeldError:
            if distributed.size() == 1 and time.monotonic() >= end:
                raise
            time.sleep(min(2.0, PATIENCE))
