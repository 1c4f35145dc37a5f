"""Training checkpoints, which include the state of the random generators."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crbg import rng
from crbg.gates.dtypes import has_float64
from crbg.storage.atomic import cannot_write
from crbg.training import distributed
from crbg.training.clock import Clock
from crbg.training.device import fork_rng
from crbg.training.hooks import Row, SearchHook


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, and keep the previous one as a fallback.

    Raises:
        WriteError: the disk is full, or the folder is not writable; earlier checkpoints are kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    try:
        torch.save(dict(state), fresh)
        if path.exists():
            path.replace(path.with_suffix(".previous"))
        fresh.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
        fresh.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def load_checkpoint(path: Path | None) -> dict[str, Any] | None:
    """Load the newest intact checkpoint to the CPU with `weights_only=True`; return None if there is none.

    If a checkpoint is damaged, a warning is issued and the previous checkpoint is loaded.
    """
    for candidate in (path, path.with_suffix(".previous")) if path else ():
        if candidate.exists():
            try:
                return dict(torch.load(candidate, weights_only=True, map_location="cpu"))
            except Exception as error:  # torch raises many exception types for a damaged file
                warnings.warn(
                    f"the checkpoint {candidate} is damaged ({type(error).__name__}); continuing from the previous "
                    "one, or from the start",
                    stacklevel=2,
                )
    return None


class GateNoise:
    """Seed torch's global generators from the run's seed inside the block, and restore their state afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.fork = seed, fork_rng(device)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(rng.torch_seed(self.seed, "gate noise"))

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


class TrainingState:
    """The state that changes during training; it is saved to and restored from a checkpoint."""

    def __init__(
        self, modules: nn.ModuleList, optimiser: torch.optim.Optimizer, search: SearchHook, device: torch.device
    ) -> None:
        self.modules, self.optimiser, self.search, self.device = modules, optimiser, search, device
        self.step, self.history = 0, list[Row]()
        # The sum of the epoch's losses stays on the device: reading each loss would make the CPU wait for each step.
        dtype = torch.float64 if has_float64(device) else torch.float32
        self.running = torch.zeros((), dtype=dtype, device=device)
        self.began = self.saved = time.monotonic()
        self.began_cpu = time.process_time()

    def mean_loss(self, steps: int) -> float:
        """Return the mean loss of the finished epoch, and reset the sum."""
        mean = float(self.running) / steps
        self.running.zero_()
        return mean

    def resume(self, path: Path | None, clock: Clock) -> None:
        """Restore the checkpoint at `path`, if there is one, and add the time of earlier attempts to the clock."""
        # Only the first process reads the file: on some file systems, the others may not see the newest version yet.
        saved = load_checkpoint(path) if distributed.first() else None
        if distributed.size() > 1:
            saved = distributed.broadcast(saved)
        if not saved:
            return
        self.modules.load_state_dict(saved["modules"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.search.load_state_dict(saved["search"])
        self.step, self.history = int(saved["step"]), list(saved["history"])
        self.running += float(saved["running"])
        _set_noise_state(saved["noise"], self.device)
        seconds = float(saved.get("seconds", 0.0))
        cpu_seconds = float(saved.get("cpu_seconds", seconds))
        clock.earlier += seconds
        clock.earlier_cpu += cpu_seconds
        self.began -= seconds
        self.began_cpu -= cpu_seconds

    def save_if_due(self, path: Path | None, clock: Clock, over: bool) -> None:
        """Save a checkpoint if the clock's interval has passed or `over` is true; only the first process saves."""
        if not path or not distributed.first() or not (over or time.monotonic() - self.saved >= clock.save_every):
            return
        state = {
            "modules": self.modules.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "search": self.search.state_dict(),
            "step": self.step,
            "history": self.history,
            "running": float(self.running),
            "seconds": time.monotonic() - self.began,
            "cpu_seconds": time.process_time() - self.began_cpu,
            "noise": _noise_state(self.device),
        }
        save_checkpoint(path, state)
        self.saved = time.monotonic()


def _noise_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_noise_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
