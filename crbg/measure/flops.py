"""FLOPs of a forward pass of the dense and the sparse network."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from crbg.gates.attach import bypass
from crbg.gates.layers import defaults, raw
from crbg.masks.mask import Mask
from crbg.measure.accuracy import eval_mode
from crbg.training.forward import outputs_and_labels


def flops(model: nn.Module, example: Any, mask: Mask | None = None) -> dict[str, float]:
    """Count the FLOPs of a forward pass on one example, see `layer_flops`.

    Under a mask, the FLOPs of a gated layer are multiplied by its density. Operations without gates, such as attention
    products, are counted in full, and so are the input projections inside `nn.MultiheadAttention`.

    Args:
        model: Any module.
        example: A batch of inputs, of which only the first is used; or the inputs of one example, if they are not one
            tensor.
        mask: The mask of the sparse network; without one, both counts are equal.

    Returns:
        `{"dense": ..., "kept": ...}`, the FLOPs of the dense and of the sparse network.
    """
    dense, per_weight = layer_flops(model, example)
    densities = {n: t.float().mean().item() for n, t in (mask or {}).items()}
    return {"dense": dense, "kept": dense - sum((1 - d) * per_weight.get(n, 0.0) for n, d in densities.items())}


def _product(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    """Count the FLOPs of a matrix product: two for each stored value of the first matrix and column of the second."""
    stored = a.numel() if a.layout == torch.strided else a._nnz()
    return int(2 * b.shape[1] * stored)


_product._get_raw = True  # type: ignore[attr-defined]  # torch passes the tensors instead of their shapes


def layer_flops(model: nn.Module, example: Any) -> tuple[float, dict[str, float]]:
    """Count the dense FLOPs of a forward pass on one example; a multiply-add counts as two FLOPs.

    The counts come from torch's `FlopCounterMode`.

    Returns:
        All FLOPs, and those of each weight by name: of the parameter `weight` of a module, and of the matrices of a
        recurrent layer, in proportion to their sizes.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mm: _product})
    # The counter misses the fused path of nn.MultiheadAttention and, on some devices, fused attention kernels.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # On a CPU, a fused kernel computes recurrent layers, and the counter does not see it.
        recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
        plain = torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext()
        with eval_mode(model), torch.no_grad(), bypass(model), sdpa_kernel(SDPBackend.MATH), plain, counter:
            outputs_and_labels(model, example[:1] if isinstance(example, Tensor) else example, None)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    counts = {n: float(sum(c.values())) for n, c in counter.get_flop_counts().items()}
    prefix = f"{type(model).__name__}."
    layers = {f"{n.removeprefix(prefix)}.weight": c for n, c in counts.items() if n.startswith(prefix)}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):  # every weight of a recurrent layer is used once in each step
            sizes = {n: w.numel() for n in defaults(module) if (w := raw(module, n)) is not None}
            total = layers.pop(f"{name}.weight", 0.0)
            layers |= {f"{name}.{n}".lstrip("."): total * k / sum(sizes.values()) for n, k in sizes.items()}
    return counts.get("Global", 0.0), layers
