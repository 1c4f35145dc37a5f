"""Scores -> Mask, with exactly k kept whatever the ties. Larger score = keep first; ties are broken by position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crbg.errors import CrbgError
from crbg.masks.mask import Mask


def keep_count(density: float, total: int) -> int:
    """Round density * total to the nearest integer (never truncate: int((1 - k) * n) is off by one for many k)."""
    if not 0.0 <= density <= 1.0:
        raise CrbgError(f"density {density} is not in [0, 1]; density = kept / total, sparsity = 1 - density")
    return round(density * total)


def layer_counts(scores: Mapping[str, Tensor], density: float) -> dict[str, int]:
    """Give every tensor the same density; the argument that makes `select` choose layer by layer."""
    return {name: keep_count(density, s.numel()) for name, s in scores.items()}


def select(scores: Mapping[str, Tensor], k: int | Mapping[str, int], within: Mask | None = None) -> Mask:
    """Keep the k largest scores of all tensors together, or k[name] of each.

    `within` restricts the choice to weights that another mask keeps. Scores are compared in their own dtype; only the
    CPU copy is made of the result, so scores may live anywhere.

    Raises:
        CrbgError: NaN among the scores, or k larger than what there is to choose from.
    """
    for name, s in scores.items():
        if bool(s.isnan().any()):
            raise CrbgError(f"scores of {name!r} contain NaN")
    allowed = {n: within[n].flatten().to(s.device) for n, s in scores.items()} if within is not None else None
    if not isinstance(k, int):
        if set(k) != set(scores):
            raise CrbgError(f"counts are for {sorted(k)}, scores for {sorted(scores)}")
        flat = {n: top_k(s.flatten(), k[n], allowed[n] if allowed else None, n) for n, s in scores.items()}
        return Mask({n: m.reshape(scores[n].shape) for n, m in flat.items()})
    together = torch.cat([s.flatten() for s in scores.values()])
    keep = top_k(together, k, torch.cat(list(allowed.values())) if allowed else None)
    parts = torch.split(keep, [s.numel() for s in scores.values()])
    return Mask({n: p.reshape(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)})


def top_k(scores: Tensor, k: int, allowed: Tensor | None = None, name: str = "all tensors") -> Tensor:
    """Mark the k largest of a flat tensor. A threshold is found by `kthvalue` and ties at it are filled by position."""
    eligible = scores if allowed is None else scores[allowed]
    if not 0 <= k <= eligible.numel():
        raise CrbgError(f"cannot keep {k} of {eligible.numel()} weights of {name}")
    if allowed is not None:
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep[allowed] = top_k(eligible, k)
        return keep
    if k == 0 or k == scores.numel():
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    return keep_above(scores, k, scores.kthvalue(scores.numel() - k + 1).values)


def keep_above(scores: Tensor, k: int, threshold: Tensor) -> Tensor:
    """Mark the k largest, given that the k-th largest value is `threshold`."""
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: k - int(keep.sum())]] = True
    return keep


class Threshold:
    """Find the k-th largest value of scores that move little from call to call, exactly.

    Only a window around the last answer is sorted; where the answer has left the window, everything is. Scores must be
    non-negative (edge-popup ranks |s|).
    """

    def __init__(self, width: float = 0.05) -> None:
        self.width, self.last = width, 0.0

    def __call__(self, scores: Tensor, k: int) -> Tensor:
        """Return the k-th largest of a flat tensor, 1 <= k <= its size."""
        low, high = self.last * (1 - self.width), self.last * (1 + self.width)
        near = scores[(scores >= low) & (scores <= high)]
        rank = k - int((scores > high).sum())
        if 1 <= rank <= near.numel():
            found = near.kthvalue(near.numel() - rank + 1).values
        else:
            found = scores.kthvalue(scores.numel() - k + 1).values
        self.last = float(found)
        return found
