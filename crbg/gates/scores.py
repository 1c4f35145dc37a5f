"""Gates that rank the weights of a tensor: edge-popup's top k, Bernoulli samples, rounded scores."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from crbg.gates.base import Gate, StraightThrough, straight_through
from crbg.masks.select import Threshold, keep_above, top_k


class TopK(Gate):
    """Edge-popup's gate (Ramanujan et al. 2020): keep the k largest |s| of the tensor; straight-through to every score.

    Forward w * m * gain; backward dL/d|s| = dL/dw_eff * w * gain for kept and dropped weights alike, then through |.|.
    `gain` is the sqrt(1/k) of the "scaled" variants, where k is the share KEPT.
    """

    def __init__(self, initial: Tensor, k: int, gain: float = 1.0) -> None:
        super().__init__()
        self.score = nn.Parameter(initial.detach().clone())
        self.k, self.gain, self.threshold = k, gain, Threshold()
        self.level: Tensor | None = None  # a threshold common to all layers, where a search sets one

    def effective(self, w: Tensor) -> Tensor:
        return cast(Tensor, StraightThrough.apply(self.score, w, self.kept(), self.gain))

    @torch.no_grad()
    def kept(self) -> Tensor:
        """Mark the k largest |s|, ties by position; with a common threshold, those that reach it."""
        size = self.score.detach().abs().flatten()
        if self.level is not None:
            return (size >= self.level).reshape(self.score.shape)
        if not 0 < self.k < size.numel():
            return top_k(size, self.k).reshape(self.score.shape)
        return keep_above(size, self.k, self.threshold(size, self.k)).reshape(self.score.shape)

    def scores(self) -> Tensor:
        return self.score.detach().abs()

    def soft(self) -> Tensor:
        return top_k(self.scores().flatten(), self.k).reshape(self.score.shape).to(self.score.dtype)


class Sampled(Gate):
    """Zhou et al. 2019: w * m, m ~ Bernoulli(sigmoid(v)), with the gradient of the probability in place of the draw's.

    With `rescale` the kept weights are multiplied by total / kept of the tensor ("dynamic weight rescaling").
    """

    def __init__(self, initial: Tensor, rescale: bool) -> None:
        super().__init__()
        self.v = nn.Parameter(initial.detach().clone())
        self.rescale = rescale

    def effective(self, w: Tensor) -> Tensor:
        p = self.v.sigmoid()
        drawn = torch.rand_like(p) < p if self.sampling else p.detach() > 0.5
        return straight_through(p, w, drawn, drawn.numel() / max(1, int(drawn.sum())) if self.rescale else 1.0)

    @property
    def gain(self) -> float:
        """The factor on the kept weights, with the number that draws keep on average."""
        p = self.v.detach().sigmoid()
        return p.numel() / float(p.sum()) if self.rescale else 1.0

    def scores(self) -> Tensor:
        return self.v.detach()

    def soft(self) -> Tensor:
        return self.v.detach().sigmoid()


class Scored(Gate):
    """Gem-Miner (Sreenivasan et al.

    2022): w * 1[p > 1/2] * alive, straight-through to every p; p is kept within [0, 1].
    """

    alive: Tensor

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(initial.detach().clone())
        self.register_buffer("alive", torch.ones_like(initial, dtype=torch.bool))

    def effective(self, w: Tensor) -> Tensor:
        return straight_through(self.p, w * self.alive, self.p.detach() > 0.5)

    def scores(self) -> Tensor:
        """Rank by p; what was given up for good comes last."""
        return torch.where(self.alive, self.p.detach(), self.p.detach() - 2.0)

    def soft(self) -> Tensor:
        return (self.p.detach() * self.alive).clamp(0, 1)
