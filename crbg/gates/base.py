"""What every gate is: a module that turns a frozen weight into an effective weight. Only its own parameters learn.

A gate never reads `self.training`: whether it draws noise is its `sampling` flag, because some searches run a network
in eval mode. Noise comes from torch's global generator, which the training loop seeds; a `torch.Generator` in here
would break a compiled graph into pieces.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError


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


def columns(values: Tensor, w: Tensor) -> Tensor:
    """Spread one value per unit over the input columns of w, in a shape that broadcasts against w."""
    span, rest = divmod(w.shape[1], values.numel())
    if rest or not span:
        raise CrbgError(
            f"{values.numel()} units do not divide the {w.shape[1]} input columns of a weight {tuple(w.shape)}"
        )
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


def straight_through(value: Tensor, w: Tensor, keep: Tensor, gain: float = 1.0) -> Tensor:
    """W * keep * gain, exactly, with the gradient of w * value * gain for the real `value`: dropped weights hear the task too."""
    return cast(Tensor, StraightThrough.apply(value, w, keep, gain, False))


class StraightThrough(torch.autograd.Function):
    """w * keep * gain with the gradient of w * score * gain, or of w * |score| * gain with `by_size`."""

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
