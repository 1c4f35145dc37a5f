"""Multiply-adds of a forward pass, dense and sparse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbg.gates.attach import bypass
from crbg.masks.mask import Mask


def flops(model: nn.Module, example: Tensor, mask: Mask | None = None) -> dict[str, float]:
    """Multiply-adds times two of one forward pass of one example: dense, and with only the kept weights of each layer.

    Dense counts come from torch's FlopCounterMode. A gated layer's share is its density; whatever carries no gate
    (attention products) counts in full, and so do the input projections inside `nn.MultiheadAttention`.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was, fused = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path of nn.MultiheadAttention is not counted
    # Fused attention is not counted on every device.
    with torch.no_grad(), bypass(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example[:1])
    torch.backends.mha.set_fastpath_enabled(fused)
    model.train(was)
    counts = {n: float(sum(c.values())) for n, c in counter.get_flop_counts().items()}
    dense = counts.get("Global", 0.0)
    if mask is None:
        return {"dense": dense, "kept": dense}
    root = type(model).__name__
    per_layer = {n: t.float().mean().item() for n, t in mask.items()}
    plain = {n.removesuffix(".weight"): d for n, d in per_layer.items() if n.endswith(".weight")}
    saved = sum((1 - d) * counts.get(f"{root}.{n}", 0.0) for n, d in plain.items())
    return {"dense": dense, "kept": dense - saved}
