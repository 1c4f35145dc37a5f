"""The base class of gates: modules that map a frozen weight to an effective weight.

A gate draws noise if its `sampling` flag is set, regardless of `self.training`, because some searches run the network
in eval mode. Noise comes from torch's global generator, which the training loop seeds; a `torch.Generator` per gate
would cause graph breaks in a compiled model.

Terms such as gate, mask, score and reading are defined in docs/vocabulary.md.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError


class Gate(nn.Module):
    """Base class of all gates.

    A subclass implements `effective`, `scores` and `soft`. A search trains the parameters of the gate; the weight
    itself stays frozen.

    Attributes:
        sampling: Whether `forward` draws noise.
        bypassed: Whether `forward` returns the raw weight.
    """

    sampling: bool = False
    bypassed: bool = False

    def forward(self, w: Tensor) -> Tensor:
        """Return the effective weight, of w's shape, or w itself while the gate is bypassed."""
        return w if self.bypassed else self.effective(w)

    def effective(self, w: Tensor) -> Tensor:
        """Apply the gate to w."""
        raise NotImplementedError

    def scores(self) -> Tensor:
        """Return one score per weight; larger = keep first. Scores are not clamped, so fully open gates do not tie."""
        raise NotImplementedError

    def soft(self) -> Tensor:
        """Return the gate values without noise, in [0, 1] (the reading `mean`)."""
        raise NotImplementedError

    def open_probability(self) -> Tensor:
        """Return P(z > 0) for each weight.

        Raises:
            CrbgError: the gate is deterministic.
        """
        raise CrbgError(f"{type(self).__name__} has no open probability: it is deterministic")


def columns(values: Tensor, w: Tensor) -> Tensor:
    """Repeat the value of each unit over the unit's input columns of w; the result broadcasts against w.

    Args:
        values: Shape (units,).
        w: Weight of shape (out, in, ...), where `in` is a multiple of the number of units.

    Raises:
        CrbgError: the number of input columns is not a multiple of the number of units.
    """
    span, rest = divmod(w.shape[1], values.numel())
    if rest or not span:
        raise CrbgError(
            f"a weight of shape {tuple(w.shape)} has {w.shape[1]} input columns, "
            f"which is not a multiple of the {values.numel()} units"
        )
    return values.repeat_interleave(span).reshape(1, -1, *([1] * (w.ndim - 2)))


class Fixed(Gate):
    """A gate without parameters: it multiplies w by `values`, a boolean mask or real gate values."""

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
    """Compute w * keep * gain with a straight-through gradient for `value`.

    The gradient for `value` is that of w * value * gain, so it is also non-zero where `keep` is False.
    """
    return cast(Tensor, StraightThrough.apply(value, w, keep, gain, False))


class StraightThrough(torch.autograd.Function):
    """w * keep * gain; the gradient for `score` is that of w * score * gain, or of w * |score| * gain if `by_size`."""

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
