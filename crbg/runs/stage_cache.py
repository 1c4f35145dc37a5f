"""Stages that several runs share: dense training, levels of iterative pruning, one search for all controls.

A stage is stored under the digest of all that it follows from, and read by every run that needs it. Its seconds and
steps are added to each of these runs, so that a run's cost is that of finding its ticket alone.
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

VERSION = 1  # raised whenever the numerics of any stage change
PATIENCE = 20.0  # seconds to wait for a stage that another run is computing, before this run is put off


@dataclass(frozen=True)
class _Stored:
    """A stored stage and what it cost."""

    tensors: dict[str, Tensor]
    seconds: float
    steps: int
    cpu_seconds: float


@dataclass(frozen=True)
class StageCache:
    """The shared stages of all runs with the same network, data and seed.

    Attributes:
        folder: Where stages are stored.
        of: What all stages of this cache follow from; `parts` names the rest, stage by stage.
        clock: Receives the cost of stages that are read instead of computed.
    """

    folder: Path
    of: Mapping[str, Any]
    clock: Clock

    def path(self, name: str, parts: Mapping[str, Any]) -> Path:
        """Return the path of a stage."""
        text = json.dumps({"of": dict(self.of), "parts": dict(parts), "version": VERSION}, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"

    def __call__(self, name: str, parts: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a stage, computed now with `make` if they are not stored.

        Of several processes of one run the first one reads and writes for all.

        Raises:
            HeldError: another run is computing the stage.
        """
        path = self.path(name, parts)
        with ExitStack() as stack:
            stored = self._read(path) if distributed.first() else None
            if distributed.first() and stored is None:
                _claim(stack, path.with_suffix(".making"))
                stored = self._read(path)  # another run may have stored it just now
            if distributed.size() > 1:
                stored = distributed.broadcast(stored)
            if stored is None:
                return self._make(path, make)
            self.clock.earlier += stored.seconds
            self.clock.base += stored.steps
            self.clock.earlier_cpu += stored.cpu_seconds
            return stored.tensors

    def _make(self, path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute a stage and store it with its cost, that of the stages within it included."""
        began, earlier, base = time.monotonic(), self.clock.earlier, self.clock.base
        began_cpu, earlier_cpu = time.process_time(), self.clock.earlier_cpu
        made = {n: t.detach().cpu().contiguous() for n, t in make().items()}
        seconds = time.monotonic() - began + self.clock.earlier - earlier
        cpu = time.process_time() - began_cpu + self.clock.earlier_cpu - earlier_cpu
        # Where locks do not reach, another run may have stored it first, and goes on with its own tensors.
        if distributed.first() and not path.exists():
            about = {"seconds": repr(seconds), "steps": str(self.clock.base - base), "cpu_seconds": repr(cpu)}
            write_bytes(path, save(made, about))
        return made

    def _read(self, path: Path) -> _Stored | None:
        """Read a stored stage. A damaged one is deleted, with a warning."""
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
    """Hold the lock of a stage as long as the stack lasts.

    Waits for another run that holds it: a run of one process for `PATIENCE` seconds, then it raises HeldError.
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
