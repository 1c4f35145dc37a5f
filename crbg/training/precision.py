"""The precision of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Run a forward pass in the precision asked for: under autocast for "bf16", as it is for "fp32".

    On a processor attention in bfloat16 is computed by plain matrix products: the backward pass of torch's fused
    kernel takes two fifths of a training step of ViT-tiny there.
    """
    plain = precision == "bf16" and device.type == "cpu"
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
    ):
        yield
