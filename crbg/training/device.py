"""Choose the device of a process. On a machine with several GPUs, each process reserves a free GPU by a lock file."""

from __future__ import annotations

import getpass
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from crbg.errors import CrbgError
from crbg.storage.lock import FileLock, Timeout

_taken: dict[str, FileLock] = {}  # lock of each reserved GPU; the operating system releases it when the process ends


def pick(name: str, share: int = 1, tell: Callable[[str], None] = print) -> torch.device:
    """Return the device for a name; wait while all GPUs that match the name are taken.

    At most `share` processes of a user run on one GPU, and empty GPUs are taken first. In a cluster job, only the GPUs
    assigned to the job are visible.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if one is available, otherwise the CPU.
        share: Maximum number of processes on one GPU.
        tell: Called with a line of text if the process has to wait.

    Raises:
        CrbgError: the name is unknown, or torch does not find the GPU. There is no silent fallback to the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CrbgError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise CrbgError(f"device {name!r} was requested, but torch finds no GPU; use --device cpu to run on the CPU")
    # By default, torch computes convolutions on a GPU with a 10-bit mantissa (TF32), so accuracies would differ from
    # those on a CPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    gpus = identities()
    if device.index is not None and device.index >= len(gpus):
        raise CrbgError(f"device {name!r} was requested, but the last of {len(gpus)} GPUs is cuda:{len(gpus) - 1}")
    wanted = list(enumerate(gpus)) if device.index is None else [(device.index, gpus[device.index])]
    return torch.device("cuda", _wait(wanted, share, tell))


def has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions (AVX512-BF16, AMX or Arm BF16)."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_precision(precision: str, device: torch.device) -> None:
    """Check that the device supports the precision.

    Raises:
        CrbgError: the precision is bf16, and the device is a CPU without bfloat16 instructions.
    """
    if precision == "bf16" and device.type == "cpu" and not has_bfloat16():
        raise CrbgError(
            "precision is bf16, but this CPU has no bfloat16 instructions (AVX512-BF16, AMX or Arm BF16); "
            "set `precision: fp32`, or use a GPU"
        )


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Return a context manager that restores the random states of the CPU and of `device` on exit."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def identities() -> list[str]:
    """Return the UUIDs of the visible GPUs, which do not depend on CUDA_VISIBLE_DEVICES."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def slots() -> Path:
    """Return the folder of this user's lock files on this machine."""
    return Path(tempfile.gettempdir()) / f"crbg-gpus-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"


def _wait(wanted: list[tuple[int, str]], share: int, tell: Callable[[str], None]) -> int:
    folder, waiting = slots(), False
    folder.mkdir(mode=0o700, exist_ok=True)
    for index, gpu in wanted:
        if gpu in _taken:
            return index
    while True:
        for place in range(share):
            for index, gpu in wanted:
                lock = FileLock(folder / f"{gpu}-{place}")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                _taken[gpu] = lock
                return index
        if not waiting:
            tell(f"waiting for a free GPU: {share} process(es) run on each of {len(wanted)} (locks in {folder})")
            waiting = True
        time.sleep(2)
