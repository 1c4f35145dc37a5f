"""CRBG's gated product on a CPU, with counter-based noise, in few passes over memory.

The C version is `kernels.c`; it is compiled at installation if a C compiler is available. Otherwise, torch operations
compute bit-identical results in more passes. The noise is a hash of (key, position), followed by the Box-Muller
transform; both versions use only correctly rounded single-precision operations.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from crbg.gates.dtypes import has_float64

VERSION = 2  # the version of kernels.c that this file expects
HALF = 1024  # pairs per block: positions j and j + HALF of a block share one Box-Muller pair

Key = tuple[int, int]


def draw_key() -> Key:
    """Draw a key of two 32-bit integers from torch's global generator; checkpoints save the generator's state."""
    first, second = torch.randint(-(1 << 31), 1 << 31, (2,)).tolist()
    return first, second


def normal(count: int, key: Key, device: torch.device | None = None) -> Tensor:
    """Return `count` standard normal samples in float32; they depend only on the key."""
    library = compiled() if device is None or device.type == "cpu" else None
    if library is None:
        return _torch_normal(count, key, device)
    out = torch.empty(count)
    library.crbg_normal(out.data_ptr(), count, *key, *_threads())
    return out


class Push:
    """Inputs for the next backward pass of a gate: a tensor to add to the gradient, and memory to write the result to.

    The density controller uses it to add the gradients of its penalties without another pass over memory. The memory
    of the previous gradient is reused, because allocating new memory costs as much as the pass itself.

    Attributes:
        value: A tensor that the kernel adds to the gradient.
        parameter: The gate's parameter, for which the gradient is computed.
        memory: The previous gradient of the parameter. The new gradient is written to its memory if the parameter no
            longer holds it, for example after `zero_grad`.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.parameter: Tensor | None = None
        self.memory: Tensor | None = None

    def reuse(self, parameter: Tensor | None) -> None:
        """Let the next gradient reuse the memory of the parameter's current gradient; None disables this."""
        self.parameter, self.memory = parameter, None if parameter is None else parameter.grad

    def take(self) -> Tensor | None:
        """Return `value` and clear it."""
        value, self.value = self.value, None
        return value

    def output(self, w: Tensor) -> Tensor:
        """Return memory for a gradient of w's shape and layout.

        If the memory offered by `reuse` has the right type, shape and layout, it is returned, but only once. Otherwise
        new memory is allocated.
        """
        parameter, memory = self.parameter, self.memory
        self.reuse(None)
        if parameter is None or parameter.grad is not None or memory is None:
            return torch.empty_like(w)
        same = memory.dtype == w.dtype and memory.shape == w.shape and layout(memory) == layout(w)
        return memory if same else torch.empty_like(w)


def gated_product(
    mu: Tensor, w: Tensor, noise: float = 0.0, leak: float = 0.0, hard: bool = False, push: Push | None = None
) -> Tensor:
    """Compute w * clip(mu + noise * eps, 0, 1), or w * 1[mu > 1/2] if `hard`; `suits(mu, w)` must be true.

    Args:
        mu: Gate parameters, float32.
        w: Frozen weights of mu's shape and memory layout, float32.
        noise: Standard deviation of the noise; with 0, no noise is drawn.
        leak: Derivative of the clip outside (0, 1). The gradient of hard gates is straight-through.
        hard: Whether to use the binary gate.
        push: Provides a tensor of mu's memory layout, which the next backward pass adds to the gradient of mu.

    Returns:
        The gated weight, of w's shape, with a gradient for mu only. Under autocast to bfloat16 its dtype is bfloat16,
        because the next layer would cast it anyway.
    """
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    key = draw_key() if noise > 0 and not hard else (0, 0)
    return cast(Tensor, _Product.apply(mu, w, noise, leak, hard, key, push, torch.bfloat16 if half else torch.float32))


def suits(mu: Tensor, w: Tensor) -> bool:
    """Return whether the kernels support mu and w: float32 on a CPU, equal dense layouts, no gradient for w."""
    return mu.device.type == w.device.type == "cpu" and alike(mu, w) and not torch.compiler.is_compiling()


def alike(mu: Tensor, w: Tensor) -> bool:
    """Return whether mu and w are float32 with equal dense layouts, and w needs no gradient."""
    same = mu.shape == w.shape and layout(mu) == layout(w)
    return same and is_dense(mu) and mu.dtype == w.dtype == torch.float32 and not w.requires_grad


def layout(t: Tensor) -> list[tuple[int, int]]:
    """Return the memory layout of a tensor: (stride, size) of its axes, except those of size 1."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def is_dense(t: Tensor) -> bool:
    """Return whether a tensor fills its memory without gaps or overlaps, in any order of its axes."""
    return t.numel() == 1 + sum(stride * (size - 1) for stride, size in layout(t)) if t.numel() else False


@cache
def compiled() -> Any:
    """Load the compiled kernels, or return None if this installation has none."""
    paths = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not paths:
        return None
    try:
        library = ctypes.CDLL(str(paths[0]))
        if library.crbg_gate_version() != VERSION:
            raise OSError(f"version {library.crbg_gate_version()}, expected {VERSION}")
    except (OSError, AttributeError) as error:
        warnings.warn(
            f"cannot use the compiled gate kernels in {paths[0]} ({error}); gates run in torch, with the same results "
            "but slower. Install crbg again to rebuild the kernels.",
            stacklevel=2,
        )
        return None
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    count, key, threads = ctypes.c_int64, (ctypes.c_int32,) * 2, (pointer, integer)
    library.crbg_gate_forward.argtypes = (pointer,) * 4 + (count, real, *key, integer, integer, *threads)
    library.crbg_gate_backward.argtypes = (pointer,) * 5 + (count, real, integer, *threads)
    library.crbg_normal.argtypes = (pointer, count, *key, *threads)
    for function in (library.crbg_gate_forward, library.crbg_gate_backward, library.crbg_normal):
        function.restype = None
    return library


@cache
def _parallel_region() -> Any:
    """Return the entry point of the OpenMP runtime that torch has loaded, so that torch and the gates share threads."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p)


def _threads() -> tuple[Any, int]:
    return _parallel_region(), torch.get_num_threads()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        w: Tensor,
        noise: float,
        leak: float,
        hard: bool,
        key: Key,
        push: Push | None,
        dtype: torch.dtype,
    ) -> Tensor:
        library = compiled()
        inside = torch.empty_like(mu, dtype=torch.uint8)
        if library is None:
            out = _torch_forward(mu, w, noise, hard, key, inside).to(dtype)
        else:
            out = torch.empty_like(mu, dtype=dtype)
            tensors = (mu.data_ptr(), w.data_ptr(), out.data_ptr(), inside.data_ptr())
            bf16 = dtype == torch.bfloat16
            library.crbg_gate_forward(*tensors, mu.numel(), noise, *key, hard, bf16, *_threads())
        ctx.save_for_backward(w, inside)
        ctx.leak, ctx.push = leak, push
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, inside = ctx.saved_tensors
        return _Slope.apply(grads[0], w, inside, ctx.leak, ctx.push), *[None] * 7


class _Slope(torch.autograd.Function):
    """The gradient of mu: grad * w, times `leak` where the gate is outside (0, 1).

    It is linear in grad, so its own derivative is the same function.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, w: Tensor, inside: Tensor, leak: float, push: Push | None) -> Tensor:
        ctx.save_for_backward(w, inside)
        ctx.leak, ctx.dtype = leak, grad.dtype
        library = compiled()
        if layout(grad) != layout(w):
            grad = torch.empty_like(w, dtype=grad.dtype).copy_(grad)
        if library is None or grad.dtype not in (torch.float32, torch.bfloat16):
            through = grad * w
            through = torch.where(inside.bool(), through, leak * through if leak else torch.zeros_like(through))
            return through if push is None or (add := push.take()) is None else through + add
        out, add = (push.output(w), push.take()) if push else (torch.empty_like(w), None)
        added = add.data_ptr() if add is not None else None
        tensors = (grad.data_ptr(), w.data_ptr(), inside.data_ptr(), added, out.data_ptr())
        library.crbg_gate_backward(*tensors, w.numel(), leak, grad.dtype == torch.bfloat16, *_threads())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, inside = ctx.saved_tensors
        return _Slope.apply(grads[0], w, inside, ctx.leak, None).to(ctx.dtype), *[None] * 4


def _torch_forward(mu: Tensor, w: Tensor, noise: float, hard: bool, key: Key, inside: Tensor) -> Tensor:
    """Compute the result of `crbg_gate_forward` (kernels.c) bit-identically in torch, and fill `inside`."""
    if hard:
        inside.fill_(1)
        return w * (mu > 0.5)
    u = mu
    if noise > 0:
        eps = torch.empty_like(mu)
        eps.as_strided((mu.numel(),), (1,)).copy_(_torch_normal(mu.numel(), key))
        u = mu + eps.mul_(noise)  # two operations, two roundings; torch.add(alpha=) would round once
    inside.copy_((u > 0) & (u < 1))
    return w * u.clamp(0, 1)


def _torch_normal(count: int, key: Key, device: torch.device | None = None) -> Tensor:
    """Compute the result of `crbg_normal` (kernels.c) bit-identically in torch."""
    blocks = -(-count // (2 * HALF))
    words = _mix(torch.arange(blocks * 2 * HALF, dtype=torch.int32, device=device), key).reshape(blocks, 2, HALF)
    return torch.stack(_box_muller(words[:, 0], words[:, 1]), 1).reshape(-1)[:count]


def _mix(x: Tensor, key: Key) -> Tensor:
    x = x ^ key[0]
    x = (x ^ _shift(x, 17)) * _signed(0xED5AD4BB)
    x = x ^ key[1]
    x = (x ^ _shift(x, 11)) * _signed(0xAC4C1B51)
    x = x + _signed(key[0] * 0x9E3779B9)
    x = (x ^ _shift(x, 15)) * _signed(0x31848BAB)
    return x ^ _shift(x, 14)


def _signed(word: int) -> int:
    """Interpret the low 32 bits as a signed integer."""
    return ((word + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int32 to the right as an unsigned integer."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u = (_shift(a, 9).float() + 0.5) * 2.0**-23
    bits = u.view(torch.int32) - 0x3F3504F3
    exponent = (bits >> 23).float()
    m = ((bits & 0x007FFFFF) + 0x3F3504F3).view(torch.float32)
    s = (m - 1) / (m + 1)
    q = s * s
    log_m = s * _polynomial(q, (2.0, 0.66666669, 0.4, 0.28571430))
    square = (-2.0 * (exponent * 0.69314718 + log_m)).clamp(min=0)
    # torch's float32 square root is not always correctly rounded.
    radius = square.double().sqrt().float() if has_float64(square.device) else square.sqrt()
    t = (_shift(b, 9).float() + (0.5 - 4194304.0)) * 1.8725352e-07
    p = t * t
    sine = t * _polynomial(p, (1.0, -0.16666667, 0.0083333310, -0.00019840874))
    cosine = _polynomial(p, (1.0, -0.5, 0.041666638, -0.0013888397, 2.4760495e-05))
    swap, sign = (b & 1).bool(), 1.0 - (b & 2).float()
    first, second = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
    return radius * first * sign, radius * second * sign


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = x * total + c
    return cast(Tensor, total)
