"""Parts that several runs share: a dense warm-up, the levels of iterative pruning, the search before four different controls.

A part is kept under the digest of all that it follows from, so whoever needs it next finds it. What it cost is added to
every run that uses it: a run's seconds are those of finding its ticket alone.
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

VERSION = 1  # raised whenever the numerics of any part change


PATIENCE = 20.0  # seconds to wait for a part that another run is making, before this one lets others go first


@dataclass(frozen=True)
class StageCache:
    """The shared parts of all runs with the same network, data and seed, which `of` names; the rest is named by each part's `parts`."""

    folder: Path
    of: Mapping[str, Any]
    clock: Clock

    def path(self, what: str, parts: Mapping[str, Any]) -> Path:
        """Name the file of a part."""
        text = json.dumps({"of": dict(self.of), "parts": dict(parts), "version": VERSION}, sort_keys=True)
        return self.folder / f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"

    def __call__(self, what: str, parts: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the part, made now if it is not there. Of several processes of one run the first one reads and writes for all.

        Raises:
            HeldError: another run is making it.
        """
        path = self.path(what, parts)
        with ExitStack() as stack:
            kept = self._read(path) if distributed.first() else None
            if distributed.first() and kept is None:
                _claim(stack, path.with_suffix(".making"))
                kept = self._read(path)  # who made it may have ended just now
            if distributed.size() > 1:
                kept = distributed.broadcast(kept)
            if kept is not None:
                self.clock.earlier += kept[1]
                self.clock.base += kept[2]
                self.clock.earlier_cpu += kept[3]
                return kept[0]
            began, earlier, base = time.monotonic(), self.clock.earlier, self.clock.base
            began_cpu, earlier_cpu = time.process_time(), self.clock.earlier_cpu
            made = {n: t.detach().cpu().contiguous() for n, t in make().items()}
            seconds = time.monotonic() - began + self.clock.earlier - earlier
            cpu = time.process_time() - began_cpu + self.clock.earlier_cpu - earlier_cpu
            if (
                distributed.first() and not path.exists()
            ):  # where locks do not reach, another may have been faster: what it goes on with stays
                about = {"seconds": repr(seconds), "steps": str(self.clock.base - base), "cpu_seconds": repr(cpu)}
                write_bytes(path, save(made, about))
            return made

    def _read(self, path: Path) -> tuple[dict[str, Tensor], float, int, float] | None:
        """Read a part, the seconds, the steps and the processor seconds that it took."""
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                about, kept = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - no mapping
            return kept, float(about["seconds"]), int(about["steps"]), float(about.get("cpu_seconds", about["seconds"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}): it is made again", stacklevel=2)
            path.unlink(missing_ok=True)
            return None


def _claim(stack: ExitStack, folder: Path) -> None:
    """Be the only one to make a part while the stack lasts; wait for another, alone only for a while: other runs may go first."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            stack.enter_context(lock.hold(folder))
            return
        except lock.HeldError:
            if distributed.size() == 1 and time.monotonic() >= end:
                raise
            time.sleep(min(2.0, PATIENCE))
