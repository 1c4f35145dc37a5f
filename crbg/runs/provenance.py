"""The machine and the code that made a run."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import crbg
from crbg.gates import kernels
from crbg.training import distributed


def provenance(device: torch.device, searched: float, searched_cpu: float, total: float) -> dict[str, Any]:
    """Return the contents of provenance.json.

    Args:
        device: Device of the run.
        searched: Wall seconds of the search, in all attempts.
        searched_cpu: Its processor seconds, summed over threads.
        total: Wall seconds of this attempt, search and measurements.
    """
    import resource

    gpu = device.type == "cuda"
    return {
        "search_seconds": round(searched, 3),
        "search_cpu_seconds": round(searched_cpu, 3),
        "seconds": round(total, 3),
        "peak_memory_mb": round(
            torch.cuda.max_memory_allocated(device) / 2**20
            if gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
        "device": torch.cuda.get_device_name(device) if gpu else cpu_name(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "gates": "compiled" if kernels.compiled() else "torch",
        "versions": {
            "crbg": crbg.__version__,
            "torch": torch.__version__.split("+")[0],
            "python": platform.python_version(),
        },
        "revision": revision(),
    }


def cpu_name() -> str:
    """Return the name of the processor, or of its architecture where the system does not say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def revision() -> str:
    """Return the git revision of the source, with `+` for uncommitted changes.

    Outside git it is the environment variable CRBG_REVISION, or `unknown`.
    """
    here = Path(__file__).parents[1]  # the whole package
    try:
        run = {"cwd": here, "capture_output": True, "text": True, "timeout": 10, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "--", str(here)], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CRBG_REVISION", "unknown")
    return str(head) + ("+" if dirty else "")
