"""The precision of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Run the block in the given precision: under autocast to bfloat16 for `bf16`, unchanged for `fp32`.

    On a CPU, attention in bfloat16 uses plain matrix products: the backward pass of torch's fused attention kernel
    would take 40 % of the time of a ViT-tiny training step.
    """
    plain = precision == "bf16" and device.type == "cpu"
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
    ):
        yield
