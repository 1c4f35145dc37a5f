"""How much two masks have in common, beyond what their densities imply."""

from __future__ import annotations

from crbg.masks.mask import Mask


def jaccard(a: Mask, b: Mask) -> float:
    """Return the Jaccard index: weights that both masks keep, divided by weights that at least one keeps.

    Raises:
        CrbgError: the masks have different shapes.
    """
    return (a & b).kept / max(1, (a | b).kept)


def chance_jaccard(a: Mask, b: Mask) -> float:
    """Return the Jaccard index of independent random masks with the same densities in every tensor.

    It is the ratio of the expected numbers: with densities p and q of a tensor with n weights, n p q weights are in
    both masks, and n (p + q - p q) in at least one.
    """
    both = either = 0.0
    other = b.counts()
    for name, mine in a.counts().items():
        n, p, q = mine["total"], mine["kept"] / mine["total"], other[name]["kept"] / mine["total"]
        both += n * p * q
        either += n * (p + q - p * q)
    return both / max(1.0, either)
