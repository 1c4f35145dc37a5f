"""Number formats that some devices and models need: half precision, and devices without float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)
WITHOUT_FLOAT64 = ("mps",)  # device types


def has_float64(device: torch.device) -> bool:
    """Return whether a device has float64."""
    return device.type not in WITHOUT_FLOAT64


def exact_device(device: torch.device) -> torch.device:
    """Return the device for computations in float64: the given one, or the CPU if it has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating-point type of a model, that of its first floating-point parameter; float32 without one."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def fraction(marked: Tensor) -> float:
    """Return the fraction of True in a boolean tensor, exactly as its mean in float64."""
    return int(torch.count_nonzero(marked)) / marked.numel()
