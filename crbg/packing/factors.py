"""Integer factors on the kept weights of a ticket, such as signs, and their code.

A factor f != 0 of each kept weight is coded in planes, each a mask over the kept weights: `negative` (f < 0) and
`above.1`, `above.2`, ... (|f| > 1, |f| > 2, ...), as far as they are not empty. Planes are packed like the mask itself.
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
    kept = {n: factors[n][m] if n in factors else torch.ones(int(m.sum())) for n, m in mask.items() if bool(m.any())}
    planes = {"negative": {n: f < 0 for n, f in kept.items()}}
    for level in range(1, max((int(f.abs().max()) for f in kept.values()), default=1)):
        planes[f"above.{level}"] = {n: f.abs() > level for n, f in kept.items()}
    masks = {name: Mask(plane) for name, plane in planes.items() if any(bool(bits.any()) for bits in plane.values())}
    return {name: pack(plane, contexts.none) for name, plane in masks.items()}


def decode(mask: Mask, planes: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the factors as `between` does, from packed planes.

    Raises:
        CrbgError: a plane is unknown, missing or damaged, or no weight is kept.
    """
    levels = len(planes) - ("negative" in planes)
    expected = {"negative", *(f"above.{level}" for level in range(1, levels + 1))}
    if not set(planes) <= expected or levels >= LARGEST:
        raise CrbgError(f"the planes of its factors are {sorted(planes)[:5]}, which is not one sign and levels from 1")
    shapes = {n: (int(m.sum()),) for n, m in mask.items() if bool(m.any())}
    decoded = {name: unpack(data, shapes, contexts.none) for name, data in planes.items()}
    found = {}
    for name in shapes:
        factor = torch.ones(mask[name].shape, dtype=torch.int8)
        size = 1 + sum(plane[name].to(torch.int8) for key, plane in decoded.items() if key != "negative")
        sign = 1 - 2 * decoded["negative"][name].to(torch.int8) if "negative" in decoded else 1
        factor[mask[name]] = torch.as_tensor(sign * size, dtype=torch.int8)
        if bool((factor != 1).any()):
            found[name] = factor
    return found
