"""Observation of the cross entropies that a loss computes, whatever function or module calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from crbg.errors import CrbgError

_KINDS: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll",
    F.binary_cross_entropy_with_logits: "binary",
}


@dataclass(frozen=True)
class LossCall:
    """One call of a cross entropy.

    Attributes:
        kind: `cross_entropy`, `nll` (logarithms of probabilities) or `binary` (one logit for each label 0 or 1).
        logits: The first argument, with classes on axis 1, or on axis 0 if it has one axis; without a graph.
        target: Class indices, or probabilities of classes.
        ignored: Class index whose examples are ignored.
    """

    kind: str
    logits: Tensor
    target: Tensor
    ignored: int = -100

    @property
    def classes(self) -> int:
        """Number of classes of the logits."""
        return 2 if self.kind == "binary" else self.logits.shape[min(1, self.logits.ndim - 1)]

    def labels(self) -> Tensor:
        """Return the class indices of all examples that are not ignored; probabilities become the likeliest class."""
        return self._indices()[self._counted()]

    def predictions(self) -> Tensor:
        """Return the class of the largest logit for the same examples."""
        if self.kind == "binary":
            return (self.logits > 0).long()[self._counted()]
        return self.logits.argmax(min(1, self.logits.ndim - 1))[self._counted()]

    def _indices(self) -> Tensor:
        if self.kind == "binary":
            return (self.target > 0.5).long()
        return self.target.argmax(1) if self.target.is_floating_point() else self.target

    def _counted(self) -> Tensor:
        indices = self._indices()
        return indices != self.ignored if self.kind != "binary" else torch.ones_like(indices, dtype=torch.bool)


class LossCalls(TorchFunctionMode):
    """A context manager that records each cross entropy inside the block as a `LossCall`, in `calls`.

    Raises:
        CrbgError: a label is no index of a class. On a GPU, torch would abort the process later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[LossCall] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in _KINDS:
            values = dict(zip(("input", "target"), args, strict=False)) | keywords
            if isinstance(values.get("input"), Tensor) and isinstance(values.get("target"), Tensor):
                ignored = int(keywords.get("ignore_index", -100))
                call = LossCall(_KINDS[func], values["input"].detach(), values["target"].detach(), ignored)
                _check_labels(call)
                self.calls.append(call)
        return func(*args, **keywords)


def _check_labels(call: LossCall) -> None:
    if call.kind == "binary" or call.target.is_floating_point() or not call.target.numel():
        return
    labels = call.labels()
    if not labels.numel():
        return
    lowest, highest, classes = int(labels.min()), int(labels.max()), call.classes
    if lowest >= 0 and highest < classes:
        return
    fix = "give the model one output for each class"
    if classes == 1:
        fix += ", or pass `loss=nn.functional.binary_cross_entropy_with_logits` for labels of 0 and 1"
    elif lowest >= 1 and highest <= classes:
        fix = "subtract 1 from the labels"
    elif lowest < 0:
        fix = "number the classes from 0, or pass a loss with `ignore_index`"
    raise CrbgError(f"labels run from {lowest} to {highest}, but the model has outputs for 0 to {classes - 1}; {fix}")
