"""Which device a process computes on.

On a workstation with several GPUs each process takes a free one, by lock file.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crbg.errors import CrbgError
from crbg.storage.lock import FileLock, Timeout

_taken: dict[str, FileLock] = {}  # by GPU; held until the process ends, however it ends


def pick(name: str, share: int = 1, tell: Callable[[str], None] = print) -> torch.device:
    """Turn auto, cpu, cuda or cuda:1 into a device, and wait for a free place if all GPUs are taken.

    At most `share` processes of this user work on one GPU at a time; empty GPUs are filled first. A GPU that a cluster
    assigned to the job is the only one seen, and free.

    Raises:
        CrbgError: a GPU was asked for and torch finds none; it is never replaced by the CPU silently.
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
        raise CrbgError(f"device {name!r} was asked for, but torch finds no GPU; use --device cpu to run on the CPU")
    # fp32 is fp32: torch's default lets convolutions round to 10 bits (TF32), and a ticket would read otherwise than on
    # a CPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    gpus = identities()
    if device.index is not None and device.index >= len(gpus):
        raise CrbgError(
            f"device {name!r} was asked for, but there are {len(gpus)} GPUs, cuda:0 to cuda:{len(gpus) - 1}"
        )
    wanted = list(enumerate(gpus)) if device.index is None else [(device.index, gpus[device.index])]
    return torch.device("cuda", _wait(wanted, share, tell))


def has_bfloat16() -> bool:
    """Tell whether this processor computes in bfloat16 (AVX512-BF16, AMX, or Arm's BF16), rather than emulating it."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse `precision: bf16` where the processor lacks it.

    Raises:
        CrbgError: the device is a CPU without bfloat16 instructions.
    """
    if precision == "bf16" and device.type == "cpu" and not has_bfloat16():
        raise CrbgError(
            "precision is bf16, but this processor has no bfloat16 instructions (AVX512-BF16, AMX or Arm BF16); "
            "set `precision: fp32`, or use a GPU"
        )


def identities() -> list[str]:
    """Name the visible GPUs by what stays the same in every process, whatever CUDA_VISIBLE_DEVICES says."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def slots() -> Path:
    """Name the folder of this user's lock files on this machine."""
    return Path(tempfile.gettempdir()) / f"crbg-gpus-{os.getuid()}"


def _wait(wanted: list[tuple[int, str]], share: int, tell: Callable[[str], None]) -> int:
    folder, told = slots(), False
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
        if not told:
            tell(f"waiting for a free GPU: {len(wanted)} with {share} places each are taken (locks in {folder})")
            told = True
        time.sleep(2)
