"""Integer factors on the kept weights of a ticket, such as signs, and their code.

A factor f != 0 of each kept weight is coded in planes of bits: `negative` (f < 0) has one bit for each kept weight, and
`above.k` (|f| > k) one for each kept weight with |f| >= k, for k = 1, 2, ... Planes without a 1 are left out, and the
others are packed like the mask itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crbg.errors import CrbgError
from crbg.masks.mask import Mask
from crbg.packing import contexts
from crbg.packing.stream import pack, unpack

LARGEST = 127  # absolute value of a factor


def between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """Return the integer factors by which kept weights were multiplied.

    Args:
        before: The initial weights.
        after: The weights after the search.
        mask: Mask of the kept weights.

    Returns:
        One int8 tensor of the shape of the weights for each tensor with a factor other than 1; 1 for pruned weights.

    Raises:
        CrbgError: a kept weight is no multiple of its initial value by an integer from -127 to 127 without 0.
    """
    found = {}
    for name, kept in mask.items():
        old, new = (t[name].detach().cpu() for t in (before, after))
        factor = torch.where(kept & (old != 0), (new / old).round(), 1.0)
        exact = (factor.abs() <= LARGEST) & (factor != 0) & ((old * factor.to(old.dtype)) == new)
        if not bool((exact | ~kept).all()):
            raise CrbgError(f"the kept weights of {name} are not their initial values times integers")
        if bool((factor != 1).any()):
            found[name] = factor.to(torch.int8)
    return found


def encode(mask: Mask, factors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the packed planes by name; none if all factors are 1."""
    kept = {n: factors[n][m] if n in factors else torch.ones(int(m.sum())) for n, m in mask.items()}
    planes = {"negative": {n: f < 0 for n, f in kept.items()}}
    level = 1
    while any(bool((f.abs() > level).any()) for f in kept.values()):
        planes[f"above.{level}"] = {n: f.abs()[f.abs() >= level] > level for n, f in kept.items()}
        level += 1
    if not any(bool(bits.any()) for bits in planes["negative"].values()):
        del planes["negative"]
    filled = {name: {n: bits for n, bits in plane.items() if bits.numel()} for name, plane in planes.items()}
    return {name: pack(Mask(plane), contexts.none) for name, plane in filled.items()}


def decode(mask: Mask, planes: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the factors as `between` does, from packed planes.

    Raises:
        CrbgError: a plane is unknown, missing or damaged.
    """
    levels = len(planes) - ("negative" in planes)
    names = [f"above.{level}" for level in range(1, levels + 1)]
    if set(planes) - {"negative"} != set(names) or levels >= LARGEST:
        raise CrbgError(f"the planes of its factors are {sorted(planes)[:5]}, not signs and levels from 1")
    sizes = {n: torch.ones(int(m.sum()), dtype=torch.int8) for n, m in mask.items()}
    for level, name in enumerate(names, 1):
        for n, bits in _plane(planes[name], {n: int((f == level).sum()) for n, f in sizes.items()}).items():
            sizes[n][sizes[n] == level] += bits
    negative = _plane(planes["negative"], {n: f.numel() for n, f in sizes.items()}) if "negative" in planes else {}
    found = {}
    for n, size in sizes.items():
        factor = torch.ones(mask[n].shape, dtype=torch.int8)
        factor[mask[n]] = torch.where(negative[n], -size, size) if n in negative else size
        if bool((factor != 1).any()):
            found[n] = factor
    return found


def _plane(data: bytes, counts: Mapping[str, int]) -> Mask:
    return unpack(data, {n: (count,) for n, count in counts.items() if count}, contexts.none)
