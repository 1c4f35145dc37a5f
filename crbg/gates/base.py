"""The base class of gates: modules that map a frozen weight to an effective weight.

A gate draws noise if its `sampling` flag is set, regardless of `self.training`, because some searches run the network
in eval mode. Noise comes from torch's global generator, which the training loop seeds; a `torch.Generator` per gate
would cause graph breaks in a compiled model.

Terms such as gate, mask, score and reading are defined in docs/vocabulary.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.gates.dtypes import HALF
from crbg.gates.scope import Scope


class Gate(nn.Module):
    """Base class of all gates.

    A subclass implements `effective`, `scores` and `soft`. A search trains the parameters of the gate; the weight
    itself stays frozen. For a weight in half precision, `effective` gets a float32 copy, and `forward` returns the
    result in the weight's dtype.

    Attributes:
        sampling: Whether `forward` draws noise.
        bypassed: Whether `forward` returns the raw weight.
        scope: Evaluates the gate once per forward pass of the model to which it is attached.
        candidates: Boolean tensor of the weight's shape: the weights that have a gate. None stands for all of them.
    """

    sampling: bool = False
    bypassed: bool = False
    scope: Scope | None = None
    candidates: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("candidates", None, persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        """Return the effective weight, of w's shape, or w itself while the gate is bypassed."""
        if self.bypassed:
            return w
        if self.scope is None:
            return self._weight(w)
        return self.scope.once((self, id(w)), lambda: self._weight(w))

    def _weight(self, w: Tensor) -> Tensor:
        if w.dtype in HALF:
            return self._weight(w.float()).to(w.dtype)
        if self.candidates is None:
            return self.effective(w)
        kept = self.effective(w[self.candidates])
        return torch.zeros(w.shape, dtype=kept.dtype, device=w.device).masked_scatter(self.candidates, kept)

    def effective(self, w: Tensor) -> Tensor:
        """Apply the gate to w."""
        raise NotImplementedError

    def restrict(self, candidates: Tensor) -> None:
        """Keep the gates of some weights only; the effective value of all other weights is 0.

        Afterwards the parameters, `scores` and `soft` are vectors with one value for each remaining gate, in the order
        of the weights. `widen` gives them the weight's shape again.

        Args:
            candidates: Boolean tensor of the weight's shape; True for weights that keep their gate.
        """
        for name, p in list(self.named_parameters(recurse=False)):
            if p.shape == candidates.shape:
                setattr(self, name, nn.Parameter(p.detach()[candidates]))
        for name, b in list(self.named_buffers(recurse=False)):
            if b.shape == candidates.shape:
                setattr(self, name, b[candidates])
        self.candidates = candidates

    def widen(self, values: Tensor, fill: float) -> Tensor:
        """Return one value per weight, given one value per gate; weights without a gate get `fill`."""
        if self.candidates is None:
            return values
        full = torch.full(self.candidates.shape, fill, dtype=values.dtype, device=values.device)
        return full.masked_scatter(self.candidates, values)

    def scores(self) -> Tensor:
        """Return one score per gate; the highest are kept. Scores are not clamped, so fully open gates do not tie."""
        raise NotImplementedError

    def soft(self) -> Tensor:
        """Return the gate values without noise, in [0, 1] (the reading `mean`)."""
        raise NotImplementedError

    def open_probability(self) -> Tensor:
        """Return P(z > 0) for each gate.

        Raises:
            CrbgError: the gate is deterministic.
        """
        raise CrbgError(f"{type(self).__name__} has no open probability: it is deterministic")


def trainable(initial: Tensor) -> nn.Parameter:
    """Return a parameter of a gate with these initial values, in float32 if they have half precision."""
    values = initial.detach().clone()
    return nn.Parameter(values.float() if values.dtype in HALF else values)


@dataclass(frozen=True)
class Columns:
    """How the input units of a layer lie in its weight.

    Attributes:
        axis: Axis of the inputs.
        groups: Number of groups of a convolution. Each output channel reads the inputs of its own group only.
    """

    axis: int = 1
    groups: int = 1

    def count(self, w: Tensor) -> int:
        """Return the number of inputs of the layer."""
        return w.shape[self.axis] * self.groups

    def expand(self, values: Tensor, w: Tensor) -> Tensor:
        """Repeat the value of each unit over its input columns of w; the result broadcasts against w.

        Args:
            values: Shape (units,). Consecutive inputs share a unit if there are more inputs than units.
            w: Weight whose number of inputs is a multiple of the number of units.

        Raises:
            CrbgError: the number of inputs is not a multiple of the number of units.
        """
        span, rest = divmod(self.count(w), values.numel())
        if rest or not span:
            raise CrbgError(
                f"a weight of shape {tuple(w.shape)} has {self.count(w)} input columns, "
                f"which is not a multiple of the {values.numel()} units"
            )
        every = values.repeat_interleave(span)
        if self.groups > 1:  # output channel o belongs to group o // (outputs per group)
            rows = every.reshape(self.groups, -1).repeat_interleave(w.shape[0] // self.groups, 0)
            return rows.reshape(*rows.shape, *([1] * (w.ndim - 2)))
        return every.reshape([-1 if axis == self.axis else 1 for axis in range(w.ndim)])


class Fixed(Gate):
    """A gate without parameters: it multiplies w by `values`, a boolean mask or real gate values."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def effective(self, w: Tensor) -> Tensor:
        return w * self.values

    def restrict(self, candidates: Tensor) -> None:
        """Set the values of all other weights to 0; nothing is trained, so the gate keeps its shape."""
        self.values = self.values * candidates

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
