"""Penalties on Gaussian gates, each as a value and its derivative.

A penalty is a pair of functions of mu and sigma. The search adds the derivative to `mu.grad` directly. This is exact,
costs one exponential per weight instead of a pass through autograd, and keeps the task gradient separate for the
controllers. Controllers use the mean penalty over all gates of the network, so lambda does not depend on the number of
gates N. The thesis uses the sum: lambda_thesis = lambda / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from crbg.gates.kernels import is_dense, layout
from crbg.search.penalty_names import parse

BLOCK = 1 << 17  # number of elements computed at a time, so that temporaries stay in the CPU cache

_PHI0 = 1.0 / math.sqrt(2.0 * math.pi)


def _pdf(x: Tensor) -> Tensor:
    """Compute the probability density of the standard normal distribution, in place."""
    return x.square_().mul_(-0.5).exp_().mul_(_PHI0)


def _cdf(x: Tensor) -> Tensor:
    return cast(Tensor, torch.special.ndtr(x))


@dataclass(frozen=True)
class Penalty:
    """A penalty: its elementwise value and d value / d mu, as functions of (mu, sigma), both of mu's shape."""

    value: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]


def slope_into(out: Tensor | None, penalty: Penalty, mu: Tensor, sigma: float) -> Tensor:
    """Compute `penalty.slope(mu, sigma)`; on a CPU, compute it block by block and write it to `out`.

    The result is bit-identical to one call on the whole tensor. On a CPU, allocating temporaries for a large tensor
    would cost more than the arithmetic.

    Args:
        out: Memory for the result, of mu's shape. If it is None or has another layout, new memory is allocated.
        penalty: The penalty.
        mu: Gate parameters.
        sigma: The parameter sigma of the penalty, as in Phi(mu / sigma).

    Returns:
        The derivative, of mu's shape and layout.
    """
    if mu.device.type != "cpu" or not is_dense(mu):
        return penalty.slope(mu, sigma)
    if out is None or layout(out) != layout(mu):
        out = torch.empty_like(mu)
    flat = (mu.numel(),), (1,)
    sources, targets = torch.split(mu.as_strided(*flat), BLOCK), torch.split(out.as_strided(*flat), BLOCK)
    for source, target in zip(sources, targets, strict=True):
        target.copy_(penalty.slope(source, sigma))
    return out


def _sparse(mu: Tensor, s: float) -> Tensor:
    """Compute P(z > 0) = Phi(mu / sigma), the thesis's regulariser: its mean is the expected fraction of open gates."""
    return _cdf(mu / s)


def _sparse_slope(mu: Tensor, s: float) -> Tensor:
    return _pdf(mu / s).div_(s)


def _decision(mu: Tensor, s: float) -> Tensor:
    """Compute P(0 < z < 1) = Phi((1 - mu) / sigma) - Phi(-mu / sigma), the expected fraction of undecided gates.

    The thesis mentions a regulariser "induce-decision" without giving a formula; this is our interpretation.
    """
    return _cdf((1 - mu) / s) - _cdf(-mu / s)


def _decision_slope(mu: Tensor, s: float) -> Tensor:
    return (_pdf(mu / s) - _pdf((1 - mu) / s)).div_(s)


def _quad(mu: Tensor, s: float) -> Tensor:
    """Compute z (1 - z), with z = clip(mu, 0, 1)."""
    z = mu.clamp(0, 1)
    return z * (1 - z)


def _quad_slope(mu: Tensor, s: float) -> Tensor:
    return torch.where((mu > 0) & (mu < 1), 1 - 2 * mu, torch.zeros_like(mu))


def _entropy(mu: Tensor, s: float) -> Tensor:
    """Compute the binary entropy of the open probability Phi(mu / sigma), in nats."""
    return cast(Tensor, torch.special.entr(_cdf(mu / s)) + torch.special.entr(_cdf(-mu / s)))


def _entropy_slope(mu: Tensor, s: float) -> Tensor:
    # d H_b(p) / dp = log((1 - p) / p), computed from log-CDFs so that it is finite in the tails.
    odds = torch.special.log_ndtr(-mu / s) - torch.special.log_ndtr(mu / s)
    return cast(Tensor, _sparse_slope(mu, s) * odds)


def mixed(weights: Mapping[str, float]) -> Penalty:
    """Return a linear combination of penalties, e.g. of {"induce_sparse": 1, "induce_decision": 0.5}."""
    parts = [(w, penalty(name)) for name, w in weights.items()]

    def value(mu: Tensor, s: float) -> Tensor:
        return sum((w * p.value(mu, s) for w, p in parts), start=torch.zeros_like(mu))

    def slope(mu: Tensor, s: float) -> Tensor:
        return sum((w * p.slope(mu, s) for w, p in parts), start=torch.zeros_like(mu))

    return Penalty(value, slope)


PENALTIES = {
    "induce_sparse": Penalty(_sparse, _sparse_slope),
    "induce_decision": Penalty(_decision, _decision_slope),
    "decision_quad": Penalty(_quad, _quad_slope),
    "decision_entropy": Penalty(_entropy, _entropy_slope),
}


def penalty(name: str) -> Penalty:
    """Return a penalty by name, or a linear combination from text like "2*induce_sparse+0.5*induce_decision".

    Raises:
        CrbgError: the name is unknown, or a factor is not a finite number.
    """
    return PENALTIES[name] if name in PENALTIES else mixed(parse(name))
