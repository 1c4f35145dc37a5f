"""Sparse variational dropout (Molchanov et al. 2017): Gaussian weights with the local reparametrisation trick."""

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

K1, K2, K3 = 0.63576, 1.87320, 1.48695  # constants of the approximate KL divergence, equation 14 of the paper


def kl(log_alpha: Tensor) -> Tensor:
    """Return the KL divergence of each weight from the log-uniform prior, approximated by equation 14 of the paper.

    KL = K1 (1 - sigmoid(K2 + K3 log alpha)) + log(1 + 1 / alpha) / 2, up to a constant. The constant is chosen so that
    KL tends to 0 as alpha grows.
    """
    return K1 * (1.0 - torch.sigmoid(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)


def ramp(progress: float, silent: float, full: float) -> float:
    """Return the weight of the KL term: it rises linearly from 0 at progress `silent` to 1 at progress `full`."""
    return min(1.0, max(0.0, (progress - silent) / (full - silent)))


class Variational(SearchHook):
    """A context manager that gives linear and convolution layers Gaussian weights, q(w) = N(theta, sigma^2).

    In training mode a layer computes X theta + sqrt(X^2 sigma^2 + 1e-8) eps, with a new eps for each output; in eval
    mode it computes X theta. Weights with log alpha >= `threshold` are excluded from X theta in both modes, but not
    from the variance.

    Args:
        model: The network; its weights are theta, and they are trained.
        start: Initial log sigma^2.
        threshold: Weights with log alpha >= `threshold` count as pruned.
        scale: The weight of the KL term as a function of the progress in [0, 1].

    Raises:
        CrbgError: a weight belongs to a layer that is neither `nn.Linear` nor an ordinary (not transposed) convolution.
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
            if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
                raise CrbgError(
                    f"sparse_vd supports Linear, Conv1d, Conv2d and Conv3d layers only; {name!r} belongs to a "
                    f"{type(layer).__name__}; leave it out with `where`"
                )
            self.layers.append((layer, noise))

    def __enter__(self) -> Variational:
        for layer, noise in self.layers:
            layer.forward = self._forward(layer, noise)
        return self

    def __exit__(self, *error: object) -> None:
        for layer, _ in self.layers:
            del layer.forward  # restores the forward method of the layer's class

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
        """Return the KL divergence summed over all weights, times the current factor on the KL term."""
        return self.scale(self.progress) * sum((kl(a).sum() for a in self._alphas().values()), start=torch.zeros(()))

    def log_alpha(self) -> dict[str, Tensor]:
        """Return log alpha of each weight, by name."""
        return {n: a.detach() for n, a in self._alphas().items()}

    def _alphas(self) -> dict[str, Tensor]:
        return {n: log_alpha(w, noise) for (n, w), noise in zip(self.weights.items(), self.log_sigma2, strict=True)}

    def log(self) -> Row:
        found = self.log_alpha().values()
        kept = sum(int((a < self.threshold).sum()) for a in found) / sum(a.numel() for a in found)
        return {"density": kept, "kl weight": self.scale(self.progress)}


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Return log alpha = log sigma^2 - log theta^2, clipped to [-8, 8]."""
    return (log_sigma2 - torch.log(theta * theta + math.exp(-60.0))).clamp(-8.0, 8.0)
