"""Weights of few bits, and the size of a network with stored weights, to compare it with the file of a ticket."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from crbg import packing
from crbg.gates.selection import weights
from crbg.masks.mask import Mask
from crbg.methods.contract import SearchResult


@torch.no_grad()
def round_weights(model: nn.Module, mask: Mask, bits: int) -> None:
    """Round the weights of a network in place to integers of `bits` bits times one scale for each output unit.

    w = s q with s = max |w| / m over the kept weights of the unit, m = 2^(bits - 1) - 1, and an integer |q| <= m.
    """
    for name, w in weights(model).items():
        kept = _kept(mask, name, w)
        q, scale = _integers(w, kept, bits)
        w.copy_(torch.where(kept, q * scale, w))


def stored_bytes(model: nn.Module, mask: Mask, bits: int) -> int:
    """Return the size in bytes of a network whose weights are stored. Nothing is added for names and shapes.

    The size is the sum of the packed mask (unless all weights are kept), the kept weights, and four bytes for each
    scale, each bias and each channel of a normalisation layer, whose factor is part of a scale. Weights are floats of
    four bytes if `bits` is 0. Otherwise, they are integers of `bits` bits each, or compressed by DEFLATE if this is
    shorter.

    Args:
        model: The network; weights of few bits are already rounded by `round_weights`.
        mask: Mask of the kept weights.
        bits: Number of bits of a weight, or 0.
    """
    size = 0 if mask.kept == mask.total else len(packing.pack(mask, packing.contexts.none))
    integers, floats, stored = bytearray(), 0, weights(model)
    for name, w in stored.items():
        kept = _kept(mask, name, w)
        if bits:
            q, scale = _integers(w.detach(), kept, bits)
            integers += q[kept].to(torch.int8).cpu().numpy().tobytes()
            floats += scale.numel()
        else:
            floats += int(kept.sum())
    counted = set(map(id, stored.values()))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            floats += module.num_features
        else:
            floats += sum(p.numel() for p in module.parameters(recurse=False) if id(p) not in counted)
    packed = math.ceil(len(integers) * bits / 8)
    return size + min(packed, len(zlib.compress(bytes(integers), 9))) + 4 * floats


def saved_bytes(found: SearchResult) -> int:
    """Return how many bytes smaller a ticket is if the seed decides on the weights that the search left out."""
    if found.searched is None:
        return 0
    part = Mask({n: mask[found.searched[n]] for n, mask in found.mask.items() if bool(found.searched[n].any())})
    return len(packing.pack(found.mask, packing.contexts.none)) - len(packing.pack(part, packing.contexts.none))


def _kept(mask: Mask, name: str, w: Tensor) -> Tensor:
    """Return which weights of a tensor are kept; a tensor outside the mask keeps all of them."""
    return mask[name].to(w.device) if name in mask else torch.ones_like(w, dtype=torch.bool)


def _integers(w: Tensor, kept: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return integers (as floats), and scales that broadcast to the weights; see `round_weights`."""
    most = 2 ** (bits - 1) - 1
    rows = (w * kept).reshape(len(w), -1)
    scale = (rows.abs().amax(1) / most).reshape(-1, *[1] * (w.dim() - 1))
    return torch.where(scale > 0, w / scale, torch.zeros(())).round().clamp(-most, most), scale
