"""The loss of the first batch: what is wrong with its arguments, and which labels it would take instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from crbg.errors import CrbgError, reason
from crbg.measure.loss_calls import LossCall, LossCalls
from crbg.training.batches import Batches, TensorBatches
from crbg.training.clock import Collapse
from crbg.training.columns import not_finite
from crbg.training.forward import OWN_LOSS, UserBatch, logits
from crbg.training.loop import Loss
from crbg.training.trees import shapes

FLOAT_LABELS = (
    "pass `loss=nn.functional.mse_loss` for regression or `loss=nn.functional.binary_cross_entropy_with_logits` for "
    "labels of 0 and 1"
)
TO_FLOAT = 'this loss needs floating-point labels; convert them with `.float()` (NumPy: `.astype("float32")`)'
NO_CLASS = "correct the label, or give the model one output for each class"

_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss, F.gaussian_nll_loss)
_ONE_COLUMN = 'use `labels.squeeze(1)`, or `df["label"]` instead of a data frame with one column'


def loss_of(loss: Loss, out: Any, labels: Any) -> tuple[Tensor, list[LossCall]]:
    """Return the loss of a batch, and the cross entropies that it computes.

    Args:
        loss: The training loss, or the function that `for_any_outputs` made of it.
        out: Outputs of the model.
        labels: Labels, or `OWN_LOSS`.

    Raises:
        CrbgError: the loss raises, broadcasts outputs and labels over the batch, or returns no single number.
    """
    place = f"the loss cannot take outputs {shapes(out)} and labels {shapes(labels)}: "
    if labels is not OWN_LOSS and (problem := _class_labels(getattr(loss, "__wrapped__", loss), out, labels)):
        raise CrbgError(place + problem)
    try:
        with LossCalls() as seen, _Broadcasts(logits(out), labels):
            value = loss(out, labels)
    except CrbgError:
        raise
    except Exception as error:
        raise CrbgError(f"{place}{reason(error)}{_repair(loss, out, labels)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise CrbgError(f"the loss must be one number, the mean over the batch; it is {what}")
    return value, seen.calls


def check_all_labels(batches: Batches, labels: Any, calls: list[LossCall]) -> None:
    """Check the labels of all examples in memory, if a cross entropy takes them as they are.

    Args:
        batches: The training batches.
        labels: Labels of the first batch.
        calls: The cross entropies in its loss.

    Raises:
        CrbgError: a label is no class.
    """
    data = batches.data if isinstance(batches, TensorBatches) else None
    if not isinstance(data, tuple) or len(data) != 2 or not isinstance(data[1], Tensor):
        return
    for call in calls:
        same = isinstance(labels, Tensor) and call.target.equal(labels)
        if call.kind == "cross_entropy" and same and not labels.is_floating_point():
            wrong = (data[1] != call.ignored) & ((data[1] < 0) | (data[1] >= call.classes))
            if bool(wrong.any()):
                example = int(wrong.nonzero()[0, 0])
                label = int(data[1][wrong][0])
                raise CrbgError(
                    f"example {example} has the label {label}, but the model has outputs for 0 to {call.classes - 1}; "
                    f"{NO_CLASS}"
                )


@contextmanager
def explained(batches: Batches) -> Iterator[None]:
    """Raise a CrbgError with a hint if a search ends in a loss that is not finite, or at a label that is no class."""
    try:
        yield
    except Collapse as outcome:
        hint = f"; {_collapse_hint(batches)}" if "not finite" in str(outcome) else ""
        raise CrbgError(f"{outcome}{hint}") from outcome
    except IndexError as error:
        if found := re.fullmatch(r"Target (-?\d+) is out of bounds.", str(error)):
            raise CrbgError(
                f"a batch contains the label {found[1]}, for which the model has no output; {NO_CLASS}"
            ) from error
        raise


def _collapse_hint(batches: Batches) -> str:
    """Return what to do about a loss that is not finite: name the first batch with values that are not, if any."""
    advice = "reduce the learning rate `lr`, or scale the inputs or labels to about one"
    try:
        for i, (x, y) in enumerate(batches.epoch(0)):
            for name, part in (("inputs", x.batch if isinstance(x, UserBatch) else x), ("labels", y)):
                if not_finite(part):
                    return f"the {name} of batch {i} contain NaN or infinity; remove or replace such values"
    except Exception:  # of the user's loader; the advice holds anyway
        return advice
    return f"all inputs are finite; {advice}"


def _class_labels(loss: Any, out: Any, labels: Any) -> str | None:
    """Return what is wrong if the loss is torch's cross entropy and the labels are neither classes nor probabilities.

    With outputs and labels of one axis, torch would take the batch for the classes.
    """
    scores = logits(out)
    if not (loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)):
        return None
    if scores is None or scores.ndim == 0 or not isinstance(labels, Tensor):
        return None
    axis = min(1, scores.ndim - 1)
    if scores.ndim > 1 and scores.shape[1] == 1:
        return f"a cross entropy needs one output for each class, but there is one output; {FLOAT_LABELS}"
    if not labels.is_floating_point():
        return None
    likely = labels.shape == scores.shape and bool((labels >= 0).all())
    if likely and bool(((labels.sum(axis) - 1).abs() < 0.01).all()):
        return None
    text = f"the labels are floating-point numbers, and no probabilities of classes; {FLOAT_LABELS}"
    if scores.ndim > 1 and labels.shape != scores.shape and bool((labels == labels.round()).all()):
        text += "; convert indices of classes with `labels.long()`"
    return text


class _Broadcasts(TorchFunctionMode):
    """A context manager that raises if a loss pairs each output with the labels of all examples.

    It sees the element-wise losses of torch, and every operation on exactly these outputs and labels.
    """

    def __init__(self, out: Tensor | None, labels: Any) -> None:
        super().__init__()
        self.both, self.labels = {id(out), id(labels)}, labels

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        pair = [*args, *(kwargs or {}).values()][:2]
        if len(pair) == 2 and all(isinstance(t, Tensor) for t in pair) and (shape := _crossed(*pair)):
            whole = isinstance(result, Tensor) and result.shape == shape and {id(t) for t in pair} == self.both
            if whole or func in _ELEMENTWISE:
                first, second = (tuple(t.shape) for t in pair)
                fix = "unsqueeze" if isinstance(self.labels, Tensor) and self.labels.ndim < len(shape) else "squeeze"
                raise CrbgError(
                    f"the loss broadcasts the shapes {first} and {second} to {tuple(shape)}, and so compares each "
                    f"output with the labels of other examples; apply `.{fix}(1)` to the labels, or change the shape "
                    "of the outputs"
                )
        return result


def _crossed(a: Tensor, b: Tensor) -> torch.Size | None:
    """Return the broadcast shape of two tensors with different numbers of axes, if it has more elements than either."""
    if a.ndim == b.ndim:
        return None
    try:
        shape: torch.Size = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return shape if shape.numel() > max(a.numel(), b.numel()) else None


def _repair(loss: Loss, out: Any, labels: Any) -> str:
    """Return the first change of the labels with which the loss can be computed, as the end of a message."""
    if not isinstance(labels, Tensor):
        return ""
    changes: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("convert the labels with `labels.long()`", Tensor.long),
        (_ONE_COLUMN, lambda y: y.squeeze(1)),
        ("use `labels.unsqueeze(1)`", lambda y: y.unsqueeze(1)),
        (f"{_ONE_COLUMN}, and `.long()`", lambda y: y.squeeze(1).long()),
    ]
    if not labels.is_floating_point():
        changes = [
            (TO_FLOAT, Tensor.float),
            *changes[1:3],
            ("use `labels.unsqueeze(1).float()`", lambda y: y.unsqueeze(1).float()),
            ("use `labels.squeeze(1).float()`", lambda y: y.squeeze(1).float()),
        ]
    for text, change in changes:
        if _works(lambda change=change: loss(out, change(labels))):  # type: ignore[misc]
            return f"; {text}"
    if _works(lambda: loss(labels, out)):
        return "; a loss is called with (outputs, labels), but this one takes the labels first"
    return ""


def _works(compute: Callable[[], Any]) -> bool:
    with suppress(Exception), torch.no_grad(), LossCalls(), _Broadcasts(None, None):
        return bool(torch.isfinite(compute()).all())
    return False
