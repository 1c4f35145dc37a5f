"""CRBG's gate: a clipped Gaussian variable for each weight or for each unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, suggest
from crbg.gates import kernels
from crbg.gates.base import Columns, Gate, straight_through, trainable
from crbg.gates.scope import in_backward

NOISE_SOURCES = ("normal", "antithetic", "counter")


class Gaussian(Gate):
    """CRBG's continuously relaxed Bernoulli gate: z = clip(mu + eps, 0, 1), with eps ~ N(0, noise^2).

    Source: Tsayag & Lindenbaum 2026 (arXiv 2603.08914), after the stochastic gates (STG) of Yamada et al. 2020. The
    effective weight is w * z. The gradient is pathwise: dz/dmu = 1 where 0 < mu + eps < 1, and `leak` elsewhere.

    Examples:
        >>> import torch
        >>> from crbg import Gaussian
        >>> gate = Gaussian(torch.tensor([-0.2, 0.5, 1.3]), noise=0.5)
        >>> gate(torch.tensor([1.0, 1.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
        >>> gate.scores().tolist() == gate.mu.tolist()
        True
        >>> [round(p, 3) for p in gate.open_probability().tolist()]
        [0.345, 0.841, 0.995]

    Args:
        mu: Initial means, of the weight's shape. `mu` is the trained parameter of the gate.
        noise: Standard deviation of the noise while sampling. With 0, the gate is deterministic.
        penalty_sigma: Sigma in the penalty Phi(mu / sigma). The thesis uses one sigma for the noise and the penalty.
        source: Source of the noise. `normal`: torch's generator. `antithetic`: every second sample is the negative of
            the previous one; this halves the cost, and each sample is still exactly normal. `counter`: a hash of
            (key, position); `crbg.gates.kernels` computes the noise, adds it and clips in one pass over memory.
        learn_sigma: Train one noise level per tensor, using the reparametrisation gradient.
        leak: Derivative of the clip outside (0, 1). With 0, as in the thesis, closed and fully open gates receive no
            gradient; with 1, the gradient is straight-through. Values above 0 are an extension of this project.

    Attributes:
        redraws: Device types on which the backward pass regenerates the noise instead of storing it.
        fuses: Device types on which the fused kernels of `crbg.gates.triton` are used, if they support the tensors.
        hard: Whether to use the binary gate 1[mu > 1/2] with a straight-through gradient.

    Raises:
        CrbgError: an argument is out of range, or the source is unknown.
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
            raise CrbgError(f"leak {leak} must be in [0, 1], and must be 0 if learn_sigma is set")
        if noise < 0 or penalty_sigma <= 0:
            raise CrbgError(f"noise {noise} must be >= 0 and penalty_sigma {penalty_sigma} must be > 0")
        if source not in NOISE_SOURCES:
            raise CrbgError(f"unknown noise source {source!r}: {suggest(source, NOISE_SOURCES)}")
        if learn_sigma and noise == 0:
            raise CrbgError("learn_sigma needs an initial noise above 0")
        self.mu = trainable(mu)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(noise))) if learn_sigma else None
        self.noise, self.penalty_sigma, self.source, self.leak = noise, penalty_sigma, source, leak
        # The last sample of an antithetic pair, and whether its negative has been used too. A sample whose negative is
        # still to come is saved, so that a resumed search draws the same noise.
        self.held: Tensor | None = None
        self.used = False
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
            from crbg.gates import triton  # imported here because importing Triton is slow

            if triton.suits(self.mu, w):
                return triton.product(self.mu, w, self.noise if sampled else 0.0, self.leak)
        # Without noise, the compiled kernel and the torch version are bit-identical, so any source may use the kernel.
        if (self.source == "counter" if sampled else kernels.compiled()) and kernels.suits(self.mu, w):
            return kernels.gated_product(self.mu, w, self.noise if sampled else 0.0, self.leak, push=self.push)
        again = sampled and self.source == "normal" and self.mu.device.type in self.redraws
        state = _generator(self.mu.device).get_state() if again else None
        return cast(
            Tensor, _GatedProduct.apply(self.mu, w, self.draw() if sampled else None, self.noise, self.leak, state)
        )

    def draw(self) -> Tensor:
        """Draw one standard normal sample per gate."""
        if self.source == "normal":
            return torch.randn_like(self.mu)
        if self.source == "counter":
            eps = torch.empty_like(self.mu)
            # Positions are numbered in memory order, as in the kernels.
            eps.as_strided((eps.numel(),), (1,)).copy_(kernels.normal(eps.numel(), kernels.draw_key(), eps.device))
            return eps
        # A recomputation by checkpointing must return the last sample. If it is `held`, a new draw is equal to it,
        # because torch has restored the generator, and advances the generator as the first pass did.
        if in_backward() and self.held is not None:
            return -self.held if self.used else torch.randn_like(self.mu)
        if self.held is None or self.used:
            self.held, self.used = torch.randn_like(self.mu), False
            return self.held
        self.used = True
        return -self.held

    def opened(self) -> Tensor:
        """Return which gates are above 1/2, those that the mask `half` keeps."""
        return self.mu.detach() > 0.5

    def scores(self) -> Tensor:
        return self.mu.detach()

    def soft(self) -> Tensor:
        return self.mu.detach().clamp(0, 1)

    def sigma(self) -> float:
        """Return the current standard deviation of the noise."""
        return self.noise if self.log_sigma is None else float(self.log_sigma.detach().exp())

    def open_probability(self) -> Tensor:
        """Return P(z > 0) = Phi(mu / noise)."""
        if self.sigma() == 0:
            return (self.mu.detach() > 0).to(self.mu.dtype)
        return cast(Tensor, torch.special.ndtr(self.mu.detach() / self.sigma()))

    def get_extra_state(self) -> dict[str, Any]:
        return {"held": None if self.used else self.held, "noise": self.noise}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        held = state["held"]
        self.held, self.noise = None if held is None else held.to(self.mu.device), float(state["noise"])
        self.used = False


class Units(Gaussian):
    """One clipped Gaussian gate per unit, applied to the input columns of the next layer: w[:, j] * z[j // span].

    The input columns are on axis 0 for transposed convolutions and for transformers' `Conv1D`. In a grouped
    convolution, each output channel is multiplied by the gates of its group's inputs.

    This is equivalent to gating the unit's output, for any activation and bias. The network's inputs can be gated in
    the same way. `span` is the number of columns per unit: 1, or more if each channel is flattened into several inputs
    of a linear layer. If several layers read the same residual stream, attach the same `Units` to the weight of each;
    all of them then use the same sample in a forward pass.

    Args:
        mu: Initial means, shape (units,).
        **options: As for `Gaussian`, except `leak`.

    Raises:
        CrbgError: mu is not a vector, or `leak` is given.
    """

    def __init__(self, mu: Tensor, **options: Any) -> None:
        if mu.ndim != 1:
            raise CrbgError(f"mu of unit gates must be a vector, one value per unit, but has shape {tuple(mu.shape)}")
        if options.get("leak"):
            raise CrbgError("leak works for gates on weights, not on units; set leak to 0")
        super().__init__(mu, **options)
        self.columns: Columns | None = None  # the layout of the weight, set by `attach`

    def effective(self, w: Tensor) -> Tensor:
        z = self.z() if self.scope is None else self.scope.once((self, "z"), self.z)
        return w * (self.columns or Columns()).expand(z, w)

    def restrict(self, candidates: Tensor) -> None:
        """Do nothing: a unit keeps its gate if some of its weights are no candidates."""

    def z(self) -> Tensor:
        """Return the gate values, shape (units,): binary if `hard` is set, with noise if `sampling` is set."""
        if self.hard:
            return straight_through(self.mu, torch.ones_like(self.mu), self.mu.detach() > 0.5)
        noisy = self.sampling and self.sigma() > 0
        sigma = self.noise if self.log_sigma is None else self.log_sigma.exp()
        return (self.mu + sigma * self.draw() if noisy else self.mu).clamp(0, 1)


def _generator(device: torch.device) -> torch.Generator:
    """Return torch's global generator for a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


class _GatedProduct(torch.autograd.Function):
    """w * clip(mu + noise * eps, 0, 1) with its exact derivatives, in few passes over memory.

    `state` is the generator's state before eps was drawn. If it is given, the backward pass regenerates eps from it, so
    only mu and w are saved.
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
            # hardtanh_backward is the derivative of the clip in one pass: 1 strictly inside (0, 1), 0 elsewhere.
            grad_mu = torch.ops.aten.hardtanh_backward(through, u, 0.0, 1.0)
            if ctx.leak:
                grad_mu = torch.lerp(grad_mu, through, ctx.leak)
        return grad_mu, (grads[0] * u.clamp(0, 1) if ctx.needs_input_grad[1] else None), None, None, None, None
