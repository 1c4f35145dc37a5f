"""Describe the machine and the code that produced a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
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
        searched: Wall time of the search in seconds, summed over all attempts.
        searched_cpu: CPU time of the search in seconds, summed over all attempts and threads.
        total: Wall time of this attempt in seconds, including measurements.
    """
    gpu = device.type == "cuda"
    return {
        "search_seconds": round(searched, 3),
        "search_cpu_seconds": round(searched_cpu, 3),
        "seconds": round(total, 3),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated(device) / 2**20) if gpu else peak_memory_mb(),
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


def peak_memory_mb() -> int:
    """Return the peak memory of this process in MiB; 0 on systems that do not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))  # macOS reports bytes, Linux KiB


def cpu_name() -> str:
    """Return the model name of the CPU, or its architecture if the system does not report a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def revision() -> str:
    """Return the git revision of the source, with `+` for uncommitted changes.

    Outside a git repository, return the environment variable CRBG_REVISION, or `unknown` if it is not set.
    """
    here = Path(__file__).parents[1]  # the folder of the package
    try:
        run = {"cwd": here, "capture_output": True, "text": True, "timeout": 10, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "--", str(here)], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CRBG_REVISION", "unknown")
    return str(head) + ("+" if dirty else "")
