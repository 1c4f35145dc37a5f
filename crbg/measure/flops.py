"""FLOPs of a forward pass of the dense and the sparse network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbg.gates.attach import bypass
from crbg.masks.mask import Mask
from crbg.measure.accuracy import eval_mode


def flops(model: nn.Module, example: Tensor, mask: Mask | None = None) -> dict[str, float]:
    """Count the FLOPs of a forward pass on one example; a multiply-add counts as two FLOPs.

    Dense counts come from torch's `FlopCounterMode`. Under a mask, the FLOPs of a gated layer are multiplied by its
    density. Operations without gates, such as attention products, are counted in full, and so are the input projections
    inside `nn.MultiheadAttention`.

    Args:
        model: Any module.
        example: A batch of inputs; only the first input is used.
        mask: The mask of the sparse network; without one, both counts are equal.

    Returns:
        `{"dense": ..., "kept": ...}`, the FLOPs of the dense and of the sparse network.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # The counter misses the fused path of nn.MultiheadAttention and, on some devices, fused attention kernels.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(model), torch.no_grad(), bypass(model), sdpa_kernel(SDPBackend.MATH), counter:
            model(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    counts = {n: float(sum(c.values())) for n, c in counter.get_flop_counts().items()}
    dense = counts.get("Global", 0.0)
    if mask is None:
        return {"dense": dense, "kept": dense}
    root = type(model).__name__
    per_layer = {n: t.float().mean().item() for n, t in mask.items()}
    plain = {n.removesuffix(".weight"): d for n, d in per_layer.items() if n.endswith(".weight")}
    saved = sum((1 - d) * counts.get(f"{root}.{n}", 0.0) for n, d in plain.items())
    return {"dense": dense, "kept": dense - saved}
