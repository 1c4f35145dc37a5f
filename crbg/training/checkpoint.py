"""Checkpoints of a training, with the state of the noise."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crbg import rng
from crbg.storage.atomic import cannot_write


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write atomically and keep the checkpoint before, in case this one is found damaged.

    Raises:
        WriteError: the disk is full; the checkpoints before are still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    try:
        torch.save(dict(state), fresh)
        if path.exists():
            path.replace(path.with_suffix(".previous"))
        fresh.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
        fresh.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def load_checkpoint(path: Path | None) -> dict[str, Any] | None:
    """Read the newest intact checkpoint, without pickle; None when there is none. A damaged one is said to be, and passed over."""
    for candidate in (path, path.with_suffix(".previous")) if path else ():
        if candidate.exists():
            try:
                return dict(torch.load(candidate, weights_only=True, map_location="cpu"))  # what takes it up knows its device
            except Exception as error:  # a truncated zip, a short read: torch raises many types for one cause
                what = f"{candidate} is damaged ({type(error).__name__}): taking the checkpoint before it, or starting again"
                warnings.warn(what, stacklevel=2)
    return None


class _Noise:
    """Own torch's global generator within the block, seeded from the run's seed, and give it back afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, devices = seed, [device] if device.type == "cuda" else []
        self.fork = torch.random.fork_rng(devices=devices)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(rng.torch_seed(self.seed, "gate noise"))

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def _noise_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_noise_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
