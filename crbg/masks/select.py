"""Top-k selection: turn scores into a mask that keeps exactly k weights; ties are broken by position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crbg.errors import CrbgError
from crbg.masks.mask import Mask


def keep_count(density: float, total: int) -> int:
    """Return density * total, rounded to the nearest integer.

    Public implementations often truncate, as in int((1 - density) * total), which is off by one for many densities.

    Raises:
        CrbgError: the density is not in [0, 1].
    """
    if not 0.0 <= density <= 1.0:
        raise CrbgError(f"density {density} is not in [0, 1]; density = kept / total, sparsity = 1 - density")
    return round(density * total)


def candidates(s: Tensor) -> int:
    """Return the number of weights that can be kept: those whose score is not minus infinity."""
    return s.numel() - int(torch.isneginf(s).sum())


def total_count(scores: Mapping[str, Tensor], density: float) -> int:
    """Return the number of weights to keep in all tensors together, for `select`; see `candidates`."""
    return keep_count(density, sum(candidates(s) for s in scores.values()))


def layer_counts(scores: Mapping[str, Tensor], density: float) -> dict[str, int]:
    """Return the number of weights to keep in each tensor, for `select`, so that all tensors have the same density."""
    return {name: keep_count(density, candidates(s)) for name, s in scores.items()}


def erk_counts(scores: Mapping[str, Tensor], density: float) -> dict[str, int]:
    """Return the number of weights to keep in each tensor, for `select`, with Erdős-Rényi-kernel densities.

    The density of a tensor of shape (n1, n2, ...) is proportional to (n1 + n2 + ...) / (n1 n2 ...), and at most 1 (Evci
    et al. 2020, arXiv 1911.11134), so small tensors keep a larger part of their weights.
    """
    sizes = {n: candidates(s) for n, s in scores.items()}
    share = {n: sum(s.shape) / max(1, s.numel()) for n, s in scores.items()}
    wanted, full = float(keep_count(density, sum(sizes.values()))), set[str]()
    while True:
        rest = sum(share[n] * sizes[n] for n in sizes if n not in full)
        factor = (wanted - sum(sizes[n] for n in full)) / rest if rest else 0.0
        above = {n for n in sizes if n not in full and factor * share[n] > 1}
        if not above:
            return {n: sizes[n] if n in full else round(factor * share[n] * sizes[n]) for n in sizes}
        full |= above


def select(scores: Mapping[str, Tensor], k: int | Mapping[str, int], within: Mask | None = None) -> Mask:
    """Return the mask that keeps the weights with the largest scores.

    Examples:
        >>> import torch
        >>> from crbg import select
        >>> scores = {"a": torch.tensor([0.1, 0.9, 0.5]), "b": torch.tensor([0.8, 0.2])}
        >>> {name: kept.int().tolist() for name, kept in select(scores, 2).items()}
        {'a': [0, 1, 0], 'b': [1, 0]}
        >>> {name: kept.int().tolist() for name, kept in select(scores, {"a": 2, "b": 0}).items()}
        {'a': [0, 1, 1], 'b': [0, 0]}

    Args:
        scores: One tensor of scores for each weight tensor, by name, on any device. Scores keep their dtype. Weights
            that must not be kept have the score minus infinity.
        k: Number of weights to keep in all tensors together, or one number for each tensor, by name.
        within: If given, only weights that this mask keeps can be selected.

    Raises:
        CrbgError: a score is NaN, the names of `k` differ from those of `scores`, or k exceeds the number of
            candidates.
    """
    for name, s in scores.items():
        if bool(s.isnan().any()):
            raise CrbgError(f"the scores of {name!r} contain NaN")
    allowed = {n: within[n].flatten().to(s.device) for n, s in scores.items()} if within is not None else None
    if not isinstance(k, int):
        if set(k) != set(scores):
            raise CrbgError(f"counts are given for {sorted(k)}, but scores for {sorted(scores)}")
        flat = {n: top_k(s.flatten(), k[n], allowed[n] if allowed else None, n) for n, s in scores.items()}
        return Mask({n: m.reshape(scores[n].shape) for n, m in flat.items()})
    together = torch.cat([s.flatten() for s in scores.values()])
    keep = top_k(together, k, torch.cat(list(allowed.values())) if allowed else None)
    parts = torch.split(keep, [s.numel() for s in scores.values()])
    return Mask({n: p.reshape(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)})


def top_k(scores: Tensor, k: int, allowed: Tensor | None = None, name: str = "all tensors") -> Tensor:
    """Return a boolean tensor that marks the k largest values of a flat tensor; ties are broken by position."""
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
    """Return a boolean tensor that marks the k largest values; `threshold` must be the k-th largest value."""
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: k - int(keep.sum())]] = True
    return keep


class Threshold:
    """Find the exact k-th largest value of scores that change little from call to call.

    First, only scores within a relative distance `width` of the previous result are searched. If the k-th largest value
    is not among them, all scores are searched. The result is exact for any scores; the first step can succeed only if
    the previous result is not negative, as with |s| in edge-popup.
    """

    def __init__(self, width: float = 0.05) -> None:
        self.width, self.last = width, 0.0

    def __call__(self, scores: Tensor, k: int) -> Tensor:
        """Return the k-th largest value of a flat tensor, for 1 <= k <= its size."""
        low, high = self.last * (1 - self.width), self.last * (1 + self.width)
        near = scores[(scores >= low) & (scores <= high)]
        rank = k - int((scores > high).sum())
        if 1 <= rank <= near.numel():
            found = near.kthvalue(near.numel() - rank + 1).values
        else:
            found = scores.kthvalue(scores.numel() - k + 1).values
        self.last = float(found)
        return found
