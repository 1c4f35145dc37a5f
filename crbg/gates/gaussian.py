"""CRBG's gate: a clipped Gaussian for each weight, or for each unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, suggest
from crbg.gates import kernels
from crbg.gates.base import Gate, columns, straight_through

NOISE_SOURCES = ("normal", "antithetic", "counter")


class Gaussian(Gate):
    """z = clip(mu + eps, 0, 1), eps ~ N(0, noise^2): CRBG's continuously relaxed Bernoulli gate (STG's gate, mu_0 = 1/2).

    `noise` is the standard deviation of the draw and `penalty_sigma` the sigma inside the penalty Phi(mu / sigma): two
    knobs that the sources write as one. noise = 0 is the deterministic control. `source` says where noise comes from:
    "normal" is torch's generator; with "antithetic" every second draw is the negative of the one before, which halves
    the cost and keeps each draw exactly normal; "counter" is a hash of (key, position), which `crbg.gates.kernels`
    draws, adds and clips in one pass over memory. With `learn_sigma` the noise level of the tensor is a parameter (log
    sigma) and receives the reparametrised gradient.

    `leak` is what replaces the derivative of clip where it is 0, so that a closed or fully open gate still hears the
    task: 0 is the thesis's gate, 1 is straight-through. It is our extension, and runs that use it say so.

    On the kinds of device that `redraws` names, the backward pass draws the noise again instead of keeping it: the same
    numbers, no memory that lasts. On those that `fuses` names, one kernel does all of it (`crbg.gates.triton`) where it
    can.
    """

    redraws: tuple[str, ...] = ("cuda",)
    fuses: tuple[str, ...] = ("cuda",)

    def __init__(
        self,
        mu: Tensor,
        noise: float = 0.5,
        penalty_sigma: float = 0.5,
        source: str = "normal",
        learn_sigma: bool = False,
        leak: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= leak <= 1 or (leak and learn_sigma):
            raise CrbgError(f"leak {leak} must lie in [0, 1], and be 0 with learn_sigma")
        if noise < 0 or penalty_sigma <= 0:
            raise CrbgError(f"noise {noise} must be >= 0 and penalty_sigma {penalty_sigma} > 0")
        if source not in NOISE_SOURCES:
            raise CrbgError(f"unknown noise source {source!r}: {suggest(source, NOISE_SOURCES)}")
        if learn_sigma and noise == 0:
            raise CrbgError("learn_sigma needs a noise > 0 to start from")
        self.mu = nn.Parameter(mu.detach().clone())
        self.log_sigma = nn.Parameter(torch.tensor(math.log(noise))) if learn_sigma else None
        self.noise, self.penalty_sigma, self.source, self.leak = noise, penalty_sigma, source, leak
        # Held for the antithetic partner; part of the state so that a resumed search draws what it would have drawn.
        self.held: Tensor | None = None
        self.hard = False
        self.push = kernels.Push()

    def effective(self, w: Tensor) -> Tensor:
        if self.hard:
            if kernels.compiled() and kernels.suits(self.mu, w):
                return kernels.gated_product(self.mu, w, hard=True, push=self.push)
            return straight_through(self.mu, w, self.mu.detach() > 0.5)
        if self.log_sigma is not None:
            sigma = self.log_sigma.exp()
            return w * (self.mu + sigma * self.draw() if self.sampling else self.mu).clamp(0, 1)
        sampled = self.sampling and self.noise > 0
        if self.mu.device.type in self.fuses and (self.source == "normal" or not sampled):
            from crbg.gates import triton  # here, because Triton is slow to import

            if triton.suits(self.mu, w):
                return triton.product(self.mu, w, self.noise if sampled else 0.0, self.leak)
        # Without noise the compiled gate gives the bits of the plain form, whatever the source.
        if (self.source == "counter" if sampled else kernels.compiled()) and kernels.suits(self.mu, w):
            return kernels.gated_product(self.mu, w, self.noise if sampled else 0.0, self.leak, push=self.push)
        again = sampled and self.source == "normal" and self.mu.device.type in self.redraws
        state = _generator(self.mu.device).get_state() if again else None
        return cast(
            Tensor, _GatedProduct.apply(self.mu, w, self.draw() if sampled else None, self.noise, self.leak, state)
        )

    def draw(self) -> Tensor:
        """Draw eps / sigma, one standard normal per gate."""
        if self.source == "normal":
            return torch.randn_like(self.mu)
        if self.source == "counter":
            eps = torch.empty_like(self.mu)
            # Positions are counted as they lie in memory, as the kernels count them.
            eps.as_strided((eps.numel(),), (1,)).copy_(kernels.normal(eps.numel(), kernels.draw_key(), eps.device))
            return eps
        if self.held is None:
            self.held = torch.randn_like(self.mu)
            return self.held
        eps, self.held = -self.held, None
        return eps

    def scores(self) -> Tensor:
        return self.mu.detach()

    def soft(self) -> Tensor:
        return self.mu.detach().clamp(0, 1)

    def sigma(self) -> float:
        """Return the present standard deviation of the draw."""
        return self.noise if self.log_sigma is None else float(self.log_sigma.detach().exp())

    def open_probability(self) -> Tensor:
        """P(z > 0) = Phi(mu / noise)."""
        if self.sigma() == 0:
            return (self.mu.detach() > 0).to(self.mu.dtype)
        return cast(Tensor, torch.special.ndtr(self.mu.detach() / self.sigma()))

    def get_extra_state(self) -> dict[str, Any]:
        return {"held": self.held, "noise": self.noise}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        held = state["held"]
        self.held, self.noise = None if held is None else held.to(self.mu.device), float(state["noise"])


class Units(Gaussian):
    """One gate per unit, on the input columns of the unit's consumers: w[:, j] * z[j // span].

    This is exact for any activation and bias of the unit, and gates inputs as well. The span is w's width over the
    number of units (a channel flattened into a linear layer spans several columns). Consumers of one residual stream
    share one
    gate: attach the same `Units` to each of their weights, and one draw serves them all within a forward pass.
    """

    def __init__(self, mu: Tensor, **options: Any) -> None:
        if mu.ndim != 1:
            raise CrbgError(f"unit gates are a vector, not of shape {tuple(mu.shape)}")
        if options.get("leak"):
            raise CrbgError("leak is for gates on weights, not on units")
        super().__init__(mu, **options)
        self.shared = False
        self.current: Tensor | None = None

    def effective(self, w: Tensor) -> Tensor:
        z = self.current if self.current is not None else self.z()
        if self.shared:
            self.current = z
        return w * columns(z, w)

    def z(self) -> Tensor:
        """Return the present gate values, shape (units,): drawn while sampling, noise-free otherwise."""
        noisy = self.sampling and self.sigma() > 0
        sigma = self.noise if self.log_sigma is None else self.log_sigma.exp()
        return (self.mu + sigma * self.draw() if noisy else self.mu).clamp(0, 1)


def _generator(device: torch.device) -> torch.Generator:
    """Return torch's global generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


class _GatedProduct(torch.autograd.Function):
    """w * clip(mu + noise * eps, 0, 1) with its exact derivatives, in few passes over memory.

    `state` is the generator's before eps was drawn; with it eps is drawn again in the backward pass, and mu, which is
    kept anyway, is all that is saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        w: Tensor,
        eps: Tensor | None,
        noise: float,
        leak: float = 0.0,
        state: Tensor | None = None,
    ) -> Tensor:
        u = mu if eps is None else torch.add(mu, eps, alpha=noise)
        ctx.save_for_backward(u if state is None else mu, w)
        ctx.noise, ctx.leak, ctx.state = noise, leak, state
        return w * u.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        u, w = ctx.saved_tensors
        if ctx.state is not None:
            own = torch.Generator(u.device)
            own.set_state(ctx.state)
            u = torch.add(u, torch.empty_like(u).normal_(generator=own), alpha=ctx.noise)
        grad_mu = through = grads[0] * w
        if ctx.leak < 1:
            # One pass for the derivative of clip, which is 1 strictly inside (0, 1) and 0 elsewhere, the ends included.
            grad_mu = torch.ops.aten.hardtanh_backward(through, u, 0.0, 1.0)
            if ctx.leak:
                grad_mu = torch.lerp(grad_mu, through, ctx.leak)
        return grad_mu, (grads[0] * u.clamp(0, 1) if ctx.needs_input_grad[1] else None), None, None, None, None
