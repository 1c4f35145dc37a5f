"""Sparse variational dropout's layers: Gaussian weights by local reparametrisation on any model's linear and convolution layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crbg.errors import CrbgError
from crbg.gates.attach import weights
from crbg.training.hooks import Row, SearchHook

K1, K2, K3 = 0.63576, 1.87320, 1.48695  # the fit to the KL divergence of Molchanov et al. 2017, equation 14


def kl(log_alpha: Tensor) -> Tensor:
    """KL divergence of each weight from the log-uniform prior, 0 as log alpha grows: K1 (1 - sigmoid(K2 + K3 a)) + log(1 + 1/alpha) / 2."""
    return K1 * (1.0 - torch.sigmoid(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)


def ramp(progress: float, silent: float, full: float) -> float:
    """Weight of the KL term: 0 before the share `silent` of the training, 1 from `full` on, linear between."""
    return min(1.0, max(0.0, (progress - silent) / (full - silent)))


class Variational(SearchHook):
    """Within the block every gated layer computes X theta + sqrt(X^2 sigma^2 + 1e-8) eps, a fresh eps for each output.

    The mean path leaves out weights beyond the threshold already while training; the variance path keeps them. Layers
    of other kinds than nn.Linear and nn.Conv2d are refused.
    """

    def __init__(
        self, model: nn.Module, start: float, threshold: float, scale: Callable[[float], float] = lambda progress: 1.0
    ) -> None:
        self.weights, self.threshold, self.scale, self.progress = weights(model), threshold, scale, 0.0
        self.log_sigma2 = nn.ParameterList([nn.Parameter(torch.full_like(w, start)) for w in self.weights.values()])
        self.layers: list[tuple[Any, Tensor]] = []
        owners = dict(model.named_modules())
        for name, noise in zip(self.weights, self.log_sigma2, strict=True):
            layer = owners[name.rpartition(".")[0]]
            if type(layer) not in (nn.Linear, nn.Conv2d):
                raise CrbgError(
                    f"sparse_vd handles linear and convolution layers; {name!r} belongs to a {type(layer).__name__}"
                )
            self.layers.append((layer, noise))

    def __enter__(self) -> Variational:
        for layer, noise in self.layers:
            layer.forward = self._forward(layer, noise)
        return self

    def __exit__(self, *error: object) -> None:
        for layer, _ in self.layers:
            del layer.forward  # the class's own again

    def _forward(self, layer: Any, log_sigma2: Tensor) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
            if isinstance(layer, nn.Linear):
                return F.linear(x, w, bias)
            return layer._conv_forward(x, w, bias)  # type: ignore[no-any-return]

        def forward(x: Tensor) -> Tensor:
            kept = log_alpha(layer.weight, log_sigma2).detach() < self.threshold
            mean = apply(x, layer.weight * kept, layer.bias)
            if not layer.training:
                return mean
            variance = apply(x * x, log_sigma2.exp(), None)
            return mean + (variance + 1e-8).sqrt() * torch.randn_like(mean)

        return forward

    def before_forward(self, progress: float) -> None:
        self.progress = progress

    def penalty(self) -> Tensor:
        """KL over all weights, times what the schedule says now."""
        return self.scale(self.progress) * sum((kl(a).sum() for a in self._alphas().values()), start=torch.zeros(()))

    def log_alpha(self) -> dict[str, Tensor]:
        """Log alpha of each weight, by name."""
        return {n: a.detach() for n, a in self._alphas().items()}

    def _alphas(self) -> dict[str, Tensor]:
        return {n: log_alpha(w, noise) for (n, w), noise in zip(self.weights.items(), self.log_sigma2, strict=True)}

    def log(self) -> Row:
        found = self.log_alpha().values()
        kept = sum(int((a < self.threshold).sum()) for a in found) / sum(a.numel() for a in found)
        return {"density": kept, "kl weight": self.scale(self.progress)}


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Log sigma^2 - log theta^2, clipped to [-8, 8]."""
    return (log_sigma2 - torch.log(theta * theta + math.exp(-60.0))).clamp(-8.0, 8.0)
