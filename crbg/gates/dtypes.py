"""Number formats that some devices and models need: half precision, and devices without float64."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
WITHOUT_FLOAT64 = ("mps",)  # device types


def has_float64(device: torch.device) -> bool:
    """Return whether a device has float64."""
    return device.type not in WITHOUT_FLOAT64


def exact_device(device: torch.device) -> torch.device:
    """Return the device for computations in float64: the given one, or the CPU if it has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def fraction(marked: Tensor) -> float:
    """Return the fraction of True in a boolean tensor, exactly as its mean in float64."""
    return int(torch.count_nonzero(marked)) / marked.numel()
