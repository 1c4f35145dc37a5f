"""CRBG's gated product on a GPU: two Triton kernels, forward and backward, each with one pass over memory.

The torch version is `crbg.gates.gaussian._GatedProduct`. The kernels are tested against it, and gates use it on devices
where the kernels do not work. The noise is a function of (seed, position), computed by Philox and Box-Muller, so the
backward pass can recompute it, and only mu and w are saved.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crbg.errors import reason
from crbg.gates.kernels import alike, layout

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without CUDA does not install Triton
    triton = None

BLOCK = 1024

if triton is not None:

    @triton.jit(do_not_specialize=["seed"])  # type: ignore[untyped-decorator]
    def _forward(mu, w, out, seed, noise, count, noisy: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
        i = tl.program_id(0) * block + tl.arange(0, block)
        there = i < count
        u = tl.load(mu + i, mask=there)
        if noisy:
            u += noise * tl.randn(seed, i)
        z = tl.where(u < 0.0, 0.0, tl.where(u > 1.0, 1.0, u))  # NaN stays NaN
        tl.store(out + i, z * tl.load(w + i, mask=there), mask=there)

    @triton.jit(do_not_specialize=["seed"])  # type: ignore[untyped-decorator]
    def _backward(mu, w, grad, out, seed, noise, leak, count, noisy: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
        i = tl.program_id(0) * block + tl.arange(0, block)
        there = i < count
        u = tl.load(mu + i, mask=there)
        if noisy:
            u += noise * tl.randn(seed, i)
        through = tl.load(grad + i, mask=there).to(tl.float32) * tl.load(w + i, mask=there)
        tl.store(out + i, tl.where((u <= 0.0) | (u >= 1.0), leak * through, through), mask=there)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, w: Tensor, noise: float, leak: float, dtype: torch.dtype) -> Tensor:
        # The seed comes from the CPU's generator: checkpoints save its state, and no synchronisation with the GPU is
        # needed.
        ctx.seed = int(torch.randint(1 << 40, 1 << 62, ())) if noise else 1 << 40
        ctx.save_for_backward(mu, w)
        ctx.noise, ctx.leak = noise, leak
        out = torch.empty_like(mu, dtype=dtype)
        n = mu.numel()
        _forward[(triton.cdiv(n, BLOCK),)](mu, w, out, ctx.seed, noise, n, noisy=noise > 0, block=BLOCK)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        mu, w = ctx.saved_tensors
        if layout(grad) != layout(mu):
            grad = torch.empty_like(mu, dtype=grad.dtype).copy_(grad)
        out = torch.empty_like(mu)
        n = mu.numel()
        _backward[(triton.cdiv(n, BLOCK),)](
            mu, w, grad, out, ctx.seed, ctx.noise, ctx.leak, n, noisy=ctx.noise > 0, block=BLOCK
        )
        return out, None, None, None, None


def product(mu: Tensor, w: Tensor, noise: float, leak: float = 0.0) -> Tensor:
    """Compute w * clip(mu + noise * eps, 0, 1), of w's shape, with a gradient for mu only.

    If `noise` is 0, no noise is drawn. Under autocast the result has the autocast dtype, because the next layer would
    cast it anyway.
    """
    kind = mu.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else w.dtype
    return cast(Tensor, _Fused.apply(mu, w, noise, leak, dtype))


def suits(mu: Tensor, w: Tensor) -> bool:
    """Return whether the kernels support mu and w: float32, equal dense layouts, no gradient for w."""
    return alike(mu, w) and works(mu.device)


@cache
def works(device: torch.device) -> bool:
    """Return whether the kernels work on a device, tested once; if not, warn that gates use the torch version."""
    if triton is None:
        return False
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast(device.type, enabled=False):
            fault = _fault(device)
    except Exception as error:  # compilers and drivers raise many exception types
        fault = reason(error)
    if fault:
        warnings.warn(
            f"the fused gate kernels do not work on {device} ({fault}); gates run in torch, slower", stacklevel=2
        )
    return not fault


def _fault(device: torch.device, n: int = 1 << 14) -> str:
    """Check the kernels against their definition on a device; return a description of the fault, or an empty string."""
    with torch.enable_grad():
        mu = torch.linspace(-0.5, 1.5, n, device=device).requires_grad_(True)
        w = torch.linspace(-1, 1, n, device=device)
        if not torch.equal(_Fused.apply(mu, w, 0.0, 0.0, torch.float32), w * mu.detach().clamp(0, 1)):
            return "wrong products"
        middle, ones = torch.full((n,), 0.5, device=device, requires_grad=True), torch.ones(n, device=device)
        eps = (_Fused.apply(middle, ones, 0.05, 0.0, torch.float32).detach() - 0.5) / 0.05
        if not (abs(float(eps.mean())) < 0.05 and abs(float(eps.std()) - 1) < 0.05):
            return "noise is not normal"
        z = _Fused.apply(middle, ones, 0.5, 0.0, torch.float32)
        z.sum().backward()
        if middle.grad is None or not torch.equal(middle.grad != 0, (z > 0) & (z < 1)):
            return "the backward pass draws different noise"
    return ""
