"""The precision of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crbg.training.device import has_bfloat16
from crbg.training.small_convolutions import AsProducts, faster


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Run the block in the given precision: under autocast to bfloat16 for `bf16`, unchanged for `fp32`.

    On a CPU, attention in bfloat16 uses plain matrix products: the backward pass of torch's fused attention kernel
    would take 40 % of the time of a ViT-tiny training step. On processors with AMX, convolutions over few positions are
    matrix products too (`crbg.training.small_convolutions`).
    """
    plain = precision == "bf16" and device.type == "cpu"
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
        AsProducts() if plain and faster(device) else nullcontext(),
    ):
        yield


@contextmanager
def channels_last(modules: nn.Module, precision: str) -> Iterator[None]:
    """Store 4-d parameters in channels-last order inside the block for `bf16`, and contiguously after it."""
    if precision == "bf16":
        modules.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        if precision == "bf16":  # later evaluations must not use channels-last
            modules.to(memory_format=torch.contiguous_format)


def suggested(model: nn.Module, device: torch.device) -> str:
    """Return `bf16` for a float32 model with convolutions on a device with bfloat16 instructions, otherwise `fp32`."""
    convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    single = all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
    if not (convolutions and single):
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_bfloat16() else "fp32"
