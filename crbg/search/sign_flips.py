"""Signed gates: each gate also chooses the sign of its weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crbg.gates.gaussian import Gaussian
from crbg.training.hooks import Around, SearchHook


class SignFlips(Around):
    """Search gates with values in [-1, 1] instead of [0, 1], that is z = clip(mu, -1, 1).

    Since w clip(mu, -1, 1) = (sign(mu) w) clip(|mu|, 0, 1), the sign is stored in the weight: after each step, a gate
    with mu < 0 gets -mu, its weight -w, and its entry in the optimiser's running mean of the gradient the opposite
    sign. Penalties and controllers therefore see ordinary gates with mu >= 0, and a gate that passes through 0 opens
    again with the other sign. This is an extension of the thesis; signed masks come from Koster et al. (2022).

    Args:
        inner: The hook that controls the gates; it runs as without this one.
        weights: The raw weights, changed in place.
        gates: The gate of each weight, without noise and with one mu per weight.
        adam: The optimiser of the gates.
    """

    def __init__(
        self, inner: SearchHook, weights: Sequence[Tensor], gates: Sequence[Gaussian], adam: torch.optim.Adam
    ) -> None:
        super().__init__(inner)
        self.adam = adam
        self.pairs = list(zip(weights, gates, strict=True))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        for w, gate in self.pairs:
            sign = torch.where(gate.mu < 0, -1.0, 1.0).to(gate.mu.dtype)
            gate.mu.mul_(sign)
            self.adam.state[gate.mu]["exp_avg"].mul_(sign)
            w.mul_(gate.widen(sign, 1.0))
        super().after_step(progress)
