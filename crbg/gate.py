"""Gates: modules that turn a frozen weight into an effective weight. Only their own parameters learn.

A gate never reads `self.training`: whether it draws noise is its `sampling` flag, because some searches run a network in
eval mode. Noise comes from torch's global generator, which `fit` seeds; a `torch.Generator` in here would break a
compiled graph into pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from crbg import gate_kernels
from crbg.errors import CrbgError, choose
from crbg.select import Threshold, keep_above, top_k

NOISE_SOURCES = ("normal", "antithetic", "counter")


class Gate(nn.Module):
    """Base of all gates. `forward(w)` gives the effective weight, of w's shape."""

    sampling: bool = False
    bypassed: bool = False

    def forward(self, w: Tensor) -> Tensor:
        """Return w itself while bypassed, and the gated weight otherwise."""
        return w if self.bypassed else self.effective(w)

    def effective(self, w: Tensor) -> Tensor:
        """Apply the gate to w."""
        raise NotImplementedError

    def scores(self) -> Tensor:
        """Rank the weights: larger = keep first. Never clamped, so that open gates do not tie."""
        raise NotImplementedError

    def soft(self) -> Tensor:
        """Return the noise-free gate value in [0, 1] (the `mean` reading)."""
        raise NotImplementedError

    def open_probability(self) -> Tensor:
        """Return P(z > 0) for each weight, where the gate is random."""
        raise CrbgError(f"{type(self).__name__} has no open probability: it draws nothing")


class Gaussian(Gate):
    """z = clip(mu + eps, 0, 1), eps ~ N(0, noise^2): CRBG's continuously relaxed Bernoulli gate (STG's gate, mu_0 = 1/2).

    `noise` is the standard deviation of the draw and `penalty_sigma` the sigma inside the penalty Phi(mu / sigma): two
    knobs that the sources write as one. noise = 0 is the deterministic control. `source` says where noise comes from:
    "normal" is torch's generator; with "antithetic" every second draw is the negative of the one before, which halves the
    cost and keeps each draw exactly normal; "counter" is a hash of (key, position), which `crbg.gate_kernels` draws, adds
    and clips in one pass over memory. With `learn_sigma` the noise level of the tensor is a parameter (log sigma) and
    receives the reparametrised gradient.

    `leak` is what replaces the derivative of clip where it is 0, so that a closed or fully open gate still hears the task:
    0 is the thesis's gate, 1 is straight-through. It is our extension, and runs that use it say so.

    On the kinds of device that `redraws` names, the backward pass draws the noise again instead of keeping it: the same numbers,
    no memory that lasts. On those that `fuses` names, one kernel does all of it (`crbg.fused`) where it can.
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
            raise CrbgError(f"unknown noise source {source!r}: {choose(source, NOISE_SOURCES)}")
        if learn_sigma and noise == 0:
            raise CrbgError("learn_sigma needs a noise > 0 to start from")
        self.mu = nn.Parameter(mu.detach().clone())
        self.log_sigma = nn.Parameter(torch.tensor(math.log(noise))) if learn_sigma else None
        self.noise, self.penalty_sigma, self.source, self.leak = noise, penalty_sigma, source, leak
        # Held for the antithetic partner; part of the state so that a resumed search draws what it would have drawn.
        self.held: Tensor | None = None
        self.hard = False
        self.push = gate_kernels.Push()

    def effective(self, w: Tensor) -> Tensor:
        if self.hard:
            if gate_kernels.compiled() and gate_kernels.suits(self.mu, w):
                return gate_kernels.gated_product(self.mu, w, hard=True, push=self.push)
            return straight_through(self.mu, w, self.mu.detach() > 0.5)
        if self.log_sigma is not None:
            sigma = self.log_sigma.exp()
            return w * (self.mu + sigma * self.draw() if self.sampling else self.mu).clamp(0, 1)
        sampled = self.sampling and self.noise > 0
        if self.mu.device.type in self.fuses and (self.source == "normal" or not sampled):
            from crbg import fused  # here, because Triton is slow to import

            if fused.suits(self.mu, w):
                return fused.product(self.mu, w, self.noise if sampled else 0.0, self.leak)
        # Without noise the compiled gate gives the bits of the plain form, whatever the source.
        if (self.source == "counter" if sampled else gate_kernels.compiled()) and gate_kernels.suits(self.mu, w):
            return gate_kernels.gated_product(self.mu, w, self.noise if sampled else 0.0, self.leak, push=self.push)
        again = sampled and self.source == "normal" and self.mu.device.type in self.redraws
        state = _generator(self.mu.device).get_state() if again else None
        return cast(Tensor, _GatedProduct.apply(self.mu, w, self.draw() if sampled else None, self.noise, self.leak, state))

    def draw(self) -> Tensor:
        """Draw eps / sigma, one standard normal per gate."""
        if self.source == "normal":
            return torch.randn_like(self.mu)
        if self.source == "counter":
            eps = torch.empty_like(self.mu)
            # Positions are counted as they lie in memory, as the kernels count them.
            eps.as_strided((eps.numel(),), (1,)).copy_(gate_kernels.normal(eps.numel(), gate_kernels.draw_key(), eps.device))
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

    This is exact for any activation and bias of the unit, and gates inputs as well. The span is w's width over the number
    of units (a channel flattened into a linear layer spans several columns). Consumers of one residual stream share one
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


def columns(values: Tensor, w: Tensor) -> Tensor:
    """Spread one value per unit over the input columns of w, in a shape that broadcasts against w."""
    span, rest = divmod(w.shape[1], values.numel())
    if rest or not span:
        raise CrbgError(f"{values.numel()} units do not divide the {w.shape[1]} input columns of a weight {tuple(w.shape)}")
    return values.repeat_interleave(span).reshape(1, -1, *([1] * (w.ndim - 2)))


class Fixed(Gate):
    """A gate that no longer learns: w * mask, for a boolean mask or for real-valued gates."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def effective(self, w: Tensor) -> Tensor:
        return w * self.values

    def scores(self) -> Tensor:
        return self.values.to(torch.float32)

    def soft(self) -> Tensor:
        return self.values.to(torch.float32)


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
        return cast(Tensor, _StraightThrough.apply(self.score, w, self.kept(), self.gain))

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


def _generator(device: torch.device) -> torch.Generator:
    """Return torch's global generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


class _GatedProduct(torch.autograd.Function):
    """w * clip(mu + noise * eps, 0, 1) with its exact derivatives, in few passes over memory.

    `state` is the generator's before eps was drawn; with it eps is drawn again in the backward pass, and mu, which is kept anyway, is all
    that is saved.
    """

    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, w: Tensor, eps: Tensor | None, noise: float, leak: float = 0.0, state: Tensor | None = None
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


def straight_through(value: Tensor, w: Tensor, keep: Tensor, gain: float = 1.0) -> Tensor:
    """W * keep * gain, exactly, with the gradient of w * value * gain for the real `value`: dropped weights hear the task too."""
    return cast(Tensor, _StraightThrough.apply(value, w, keep, gain, False))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor, w: Tensor, keep: Tensor, gain: float, by_size: bool = True) -> Tensor:
        ctx.save_for_backward(score, w, keep)
        ctx.gain, ctx.by_size = gain, by_size
        return w * keep if gain == 1.0 else w * keep * gain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        score, w, keep = ctx.saved_tensors
        grad_w = grads[0] * keep * ctx.gain if ctx.needs_input_grad[1] else None
        through = grads[0] * w
        return (through * score.sign() if ctx.by_size else through) * ctx.gain, grad_w, None, None, None
