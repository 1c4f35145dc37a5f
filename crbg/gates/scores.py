"""Binary gates with learned scores and straight-through gradients: edge-popup and relatives, supermask, Gem-Miner."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from crbg.gates.base import Gate, StraightThrough, straight_through, trainable
from crbg.masks.select import Threshold, keep_above, top_k


class TopK(Gate):
    """Edge-popup's gate (Ramanujan et al. 2020): keep the k weights of the tensor with the largest |s|.

    The effective weight is w_eff = w * m * gain. The gradient is straight-through, dL/d|s| = dL/dw_eff * w * gain, for
    kept and dropped weights alike.

    Args:
        initial: Initial scores s, of the weight's shape.
        k: Number of weights to keep.
        gain: Factor that multiplies the kept weights; sqrt(1 / density) in the paper's "scaled" variants.
    """

    def __init__(self, initial: Tensor, k: int, gain: float = 1.0) -> None:
        super().__init__()
        self.score = trainable(initial)
        self.k, self.gain, self.threshold = k, gain, Threshold()
        self.level: Tensor | None = None  # a global threshold, set by `GlobalThreshold` and used instead of k

    def effective(self, w: Tensor) -> Tensor:
        return cast(Tensor, StraightThrough.apply(self.score, w, self.kept(), self.gain))

    @torch.no_grad()
    def kept(self) -> Tensor:
        """Return a mask of the k largest |s|, ties broken by position, or of all |s| >= level if `level` is set."""
        size = self.scores().flatten()
        if self.level is not None:
            return (size >= self.level).reshape(self.score.shape)
        if not 0 < self.k < size.numel():
            return top_k(size, self.k).reshape(self.score.shape)
        return keep_above(size, self.k, self.threshold(size, self.k)).reshape(self.score.shape)

    def scores(self) -> Tensor:
        return self.score.detach().abs()

    def soft(self) -> Tensor:
        return top_k(self.scores().flatten(), self.k).reshape(self.score.shape).to(self.score.dtype)


class Coated(TopK):
    """The gate of multicoated supermasks (Okoshi et al. 2022): w * gain * number of masks that keep it.

    The gradient is straight-through, dL/d|s| = dL/dw_eff * w * gain. The published gradient is larger by the constant
    factor N, the number of masks, which the learning rate absorbs.

    Args:
        initial: Initial scores s, of the weight's shape.
        sizes: Number of weights that each mask keeps, largest first.
        gain: Factor that multiplies all weights.
    """

    def __init__(self, initial: Tensor, sizes: list[int], gain: float = 1.0) -> None:
        super().__init__(initial, sizes[0], gain)
        self.sizes, self.thresholds = sizes, [Threshold() for _ in sizes]

    def effective(self, w: Tensor) -> Tensor:
        return cast(Tensor, StraightThrough.apply(self.score, w, self.coats(), self.gain))

    @torch.no_grad()
    def coats(self) -> Tensor:
        """Return the number of masks that keep each weight."""
        size = self.score.detach().abs().flatten()
        coats = torch.zeros_like(size)
        for k, threshold in zip(self.sizes, self.thresholds, strict=True):
            coats += keep_above(size, k, threshold(size, k)) if 0 < k < size.numel() else float(k > 0)
        return coats.reshape(self.score.shape)


class Partly(TopK):
    """Edge-popup's gate on a part of the weights; `kind` decides the others.

    Args:
        initial: Initial scores s, of the weight's shape.
        k: Number of weights to keep, with those that are always kept.
        gain: Factor that multiplies the kept weights.
        kind: Integer tensor of the weight's shape: 0 for a searched weight, 1 for one that is always kept, -1 for one
            that is always pruned.
    """

    kind: Tensor

    def __init__(self, initial: Tensor, k: int, gain: float, kind: Tensor) -> None:
        super().__init__(initial, k, gain)
        self.register_buffer("kind", kind)

    def scores(self) -> Tensor:
        """Return |s|, -1 for weights that are always pruned, and 1 more than the largest for those always kept."""
        size = self.score.detach().abs()
        return torch.where(self.kind > 0, size.max() + 1, torch.where(self.kind < 0, -torch.ones_like(size), size))


class Sampled(Gate):
    """The supermask gate (Zhou et al. 2019): w * m, with m ~ Bernoulli(sigmoid(v)).

    The straight-through gradient is that of w * sigmoid(v). Without sampling, m = 1[sigmoid(v) > 1/2].

    Args:
        initial: Initial values of v, of the weight's shape.
        rescale: Multiply the kept weights by (number of weights) / (number of kept weights), both counted in this
            tensor ("dynamic weight rescaling").
    """

    def __init__(self, initial: Tensor, rescale: bool) -> None:
        super().__init__()
        self.v = trainable(initial)
        self.rescale = rescale

    def effective(self, w: Tensor) -> Tensor:
        p = self.v.sigmoid()
        drawn = torch.rand_like(p) < p if self.sampling else p.detach() > 0.5
        return straight_through(p, w, drawn, drawn.numel() / max(1, int(drawn.sum())) if self.rescale else 1.0)

    @property
    def gain(self) -> float:
        """The rescaling factor if exactly the expected number of weights is kept; 1 without `rescale`."""
        p = self.v.detach().sigmoid()
        return p.numel() / float(p.sum()) if self.rescale else 1.0

    def scores(self) -> Tensor:
        return self.v.detach()

    def soft(self) -> Tensor:
        return self.v.detach().sigmoid()


class Rounded(Gate):
    """Gem-Miner's gate (Sreenivasan et al. 2022): w * 1[p > 1/2] * alive, with a straight-through gradient for p.

    `alive` marks the weights that have not been pruned yet. `GemMinerPruning` updates it and clamps p to [0, 1].
    """

    alive: Tensor

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.p = trainable(initial)
        self.register_buffer("alive", torch.ones_like(initial, dtype=torch.bool))

    def effective(self, w: Tensor) -> Tensor:
        return straight_through(self.p, w * self.alive, self.p.detach() > 0.5)

    def scores(self) -> Tensor:
        """Return p, reduced by 2 for pruned weights so that they rank below all others."""
        return torch.where(self.alive, self.p.detach(), self.p.detach() - 2.0)

    def soft(self) -> Tensor:
        return (self.p.detach() * self.alive).clamp(0, 1)
