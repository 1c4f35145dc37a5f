"""One forward and backward pass before a search, which finds data, models and losses that do not fit together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from crbg.errors import CrbgError, few, reason
from crbg.gates.attach import weights
from crbg.gates.dtypes import floating_dtype
from crbg.measure.accuracy import eval_mode, training_mode
from crbg.measure.loss_calls import LossCall, LossCalls
from crbg.measure.metric import MetricFunction, score
from crbg.search.loss_check import TO_FLOAT, check_all_labels, loss_of
from crbg.search.snapshot import unchanged
from crbg.training.batches import Batches, LoaderBatches, TensorBatches
from crbg.training.columns import not_finite
from crbg.training.forward import OWN_LOSS, UserBatch, batch_size, logits, outputs_and_labels, with_logits
from crbg.training.loop import Loss
from crbg.training.precision import computing
from crbg.training.trees import map_tensors, shapes, stored_values, tensors
from crbg.training.user_data import EvenBatches

ONE_EXAMPLE = "more than 1 value per channel"  # part of torch's message about batch norm
LATER = 8  # number of further batches in which a weight that the first batch does not use is looked for


@dataclass(frozen=True)
class FirstBatch:
    """What the first batch showed.

    Attributes:
        outputs: Outputs of the model, without a graph; None if the user's function `forward` returns the loss itself.
        scalable: Whether the loss is a cross entropy of logits in the outputs, so that their scale can be chosen.
    """

    outputs: Any
    scalable: bool


def check_model(model: nn.Module) -> None:
    """Check that the parameters of a model exist and can be trained.

    Raises:
        CrbgError: there is no parameter, or one of them has no values yet or cannot have a gradient.
    """
    named = dict(model.named_parameters())
    if not named:
        raise CrbgError("the model has no parameters, so there is nothing to search")
    for name, p in named.items():
        if is_lazy(p):
            raise CrbgError(f"{name!r} has no shape yet, because its layer is lazy; run one batch through the model")
        if p.is_meta:
            raise CrbgError(f"{name!r} is on the meta device and has no values; load the model's weights first")
        if p.is_inference():
            raise CrbgError(f"{name!r} was created in inference mode and has no gradient; build the model elsewhere")


def check_first_batch(
    model: nn.Module, batches: Batches, loss: Loss, precision: str = "fp32", metric: MetricFunction | None = None
) -> FirstBatch:
    """Pass the first batch through the model and the loss, forward and backward, in training mode.

    The model, its gradients and the state of the random generators do not change.

    Args:
        model: A network without gates.
        batches: The training batches.
        loss: The training loss.
        precision: `fp32` or `bf16`.
        metric: The user's metric, which is called in eval mode and in fp32.

    Raises:
        CrbgError: there is no batch, the model, the loss or the metric raises, inputs, outputs or the loss are not
            finite, all inputs are one constant, a label is no class, or a weight that would be gated has no effect.
    """
    device = next(model.parameters()).device
    with unchanged(model):
        x, y = _first(batches)
        with training_mode(model), torch.enable_grad(), computing(device, precision):
            _check_inputs(x)
            out, labels = _run(model, x, y)
            _check_single_example(model, batches, x)
            if any(bool(t.isnan().any()) for t in tensors(out)):
                raise CrbgError("the outputs of the first batch contain NaN; check the model's weights")
            value, calls = loss_of(loss, out, labels)
            if not bool(value.isfinite()):
                raise CrbgError(
                    f"the loss of the first batch is {float(value.detach())}; check the labels and the scale of the "
                    "inputs"
                )
            check_all_labels(batches, labels, calls)
            _check_gradients(model, batches, loss, value)
            if labels is OWN_LOSS:
                seen = FirstBatch(None, False)
            else:
                seen = FirstBatch(map_tensors(Tensor.detach, out), _scales(loss, out, labels, calls))
        if metric:
            with eval_mode(model), torch.no_grad():
                _check_metric(metric, *_run(model, x, y))
        return seen


def check_validation(model: nn.Module, batches: Batches, loss: Loss, metric: MetricFunction | None = None) -> None:
    """Pass the first batch of the validation data through the model, the loss and the metric, in eval mode.

    Raises:
        CrbgError: there is no batch, or the model, the loss or the metric raises; the message starts with "validation".
    """
    try:
        with unchanged(model), eval_mode(model), torch.no_grad():
            x, y = _first(batches)
            _check_inputs(x)
            out, labels = _run(model, x, y)
            loss_of(loss, out, labels)
            if metric:
                _check_metric(metric, out, labels)
    except CrbgError as error:
        raise CrbgError(f"validation: {error}") from error


def _check_metric(metric: MetricFunction, out: Any, labels: Any) -> None:
    """Call the metric, unless outputs in eval mode are not finite, as those of an untrained batch norm can be."""
    if all(bool(t.isfinite().all()) for t in tensors(out)):
        score(metric, out, labels)


def _first(batches: Batches) -> tuple[Any, Any]:
    try:
        return next(iter(batches.epoch(0)))
    except StopIteration:
        raise CrbgError("the loader yields no batch") from None
    except CrbgError:
        raise
    except Exception as error:
        padding = "; pad the examples to one length, for example in the `collate_fn` of a DataLoader"
        hint = padding if "equal size" in str(error) else ""
        raise CrbgError(f"the data cannot be read as batches: {reason(error)}{hint}") from error


def _check_inputs(x: Any) -> None:
    if what := not_finite(batch := x.batch if isinstance(x, UserBatch) else x):
        values = "missing" if what == "NaN" else "such"
        raise CrbgError(f"the inputs of the first batch contain {what}; remove or replace {values} values")
    numbers = [t for t in stored_values(batch) if t.numel()]
    varied = (t.shape[:1].numel() < 2 or bool((t != t.flatten()[0]).any()) for t in numbers)
    if numbers and not isinstance(x, UserBatch) and not any(varied):
        raise CrbgError("all inputs of the first batch have one and the same value; check how the data are loaded")


def _run(model: nn.Module, x: Any, y: Any) -> tuple[Any, Any]:
    for w in weights(model).values():
        w.requires_grad_(True)
    try:
        with LossCalls():  # checks labels that are passed to the model
            return outputs_and_labels(model, x, y)
    except CrbgError:
        raise
    except Exception as error:
        if isinstance(x, UserBatch):
            raise CrbgError(f"`forward` raised for the batch {shapes(x.batch)}: {reason(error)}") from error
        text = f"the model cannot take the data, inputs {shapes(x)}: {reason(error)}{_advice(model, x, error)}"
        raise CrbgError(text) from error


def _advice(model: nn.Module, x: Any, error: Exception) -> str:
    """Return what to change if the inputs have another type than the model, or are not one tensor."""
    if ONE_EXAMPLE in str(error):
        return "; batch norm needs batches of at least two examples, so enlarge the batch size"
    kind = floating_dtype(model)
    if sizes := [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]:
        ids = [t for t in tensors(x) if t.numel() and not t.is_floating_point()]
        largest = max((int(t.max()) for t in ids), default=-1)
        if isinstance(error, IndexError) and largest >= min(sizes):
            return f"; the inputs contain {largest}, but an embedding has {min(sizes)} rows, for 0 to {min(sizes) - 1}"
        return "" if ids else "; convert the ids of tokens with `.long()`"
    if isinstance(x, Tensor):
        return f"; convert the inputs with `.to({kind})`" if x.dtype != kind else ""
    return "; pass `forward`, a function (model, batch) that returns (outputs, labels)"


def _check_single_example(model: nn.Module, batches: Batches, x: Any) -> None:
    """Check that batch norm can take a batch of one example, if the loader yields one."""
    if not _yields_single_example(batches) or isinstance(x, UserBatch):
        return
    try:
        outputs_and_labels(model, map_tensors(lambda t: t[:1], x), None)
    except ValueError as error:
        if ONE_EXAMPLE in str(error):
            fix = "change `batch`" if _of_even_size(batches) else "pass `drop_last=True` to the DataLoader"
            raise CrbgError(
                f"the data give a batch of one example, for which batch norm has no variance; {fix}"
            ) from None


def _yields_single_example(batches: Batches) -> bool:
    if (count := _of_even_size(batches)) is not None:
        return count // len(batches) == 1
    loader = batches.loader if isinstance(batches, LoaderBatches) else None
    if isinstance(loader, list | tuple):
        return any(batch_size(*batches.pack(batch)) == 1 for batch in loader)  # type: ignore[attr-defined]
    if not isinstance(loader, DataLoader) or loader.batch_size is None or loader.drop_last:
        return False
    try:
        return len(loader.sampler) % loader.batch_size == 1  # type: ignore[arg-type]
    except TypeError:  # the sampler has no length
        return False


def _of_even_size(batches: Batches) -> int | None:
    """Return the number of examples if their division into batches, of sizes that differ by at most one, is ours."""
    if isinstance(batches, TensorBatches):
        return len(batches.rows)
    sampler = getattr(getattr(batches, "loader", None), "batch_sampler", None)
    return sampler.count if isinstance(sampler, EvenBatches) else None


def _check_gradients(model: nn.Module, batches: Batches, loss: Loss, value: Tensor) -> None:
    """Check that every weight that would be gated has an effect on the loss."""
    if not (raw := weights(model)):
        return  # `attach` raises the error
    if _recomputes(value):
        return
    found = _gradients(value, raw)
    unused = {n for n, g in found.items() if g is None}
    if unused and len(unused) < len(raw):  # a layer may be skipped at random or used by few examples
        with eval_mode(model):
            for x, y in itertools.islice(batches.epoch(0), LATER):
                again = _gradients(loss(*outputs_and_labels(model, x, y)), {n: raw[n] for n in unused})
                unused = {n for n, g in again.items() if g is None}
                if not unused:
                    break
    if unused == set(raw) or all(g is None or not bool(g.any()) for g in found.values()):
        if zeros := [n for n, p in model.named_parameters() if p.ndim > 1 and not bool(p.any())]:
            raise CrbgError(
                f"no gradient reaches any weight that can be gated, because all weights of {few(zeros)} are zero; "
                "initialise them with random weights before the search"
            )
        raise CrbgError(
            "no gradient reaches any weight that can be gated: the loss does not depend on them; check that the "
            "model's forward pass and the loss are differentiable"
        )
    if unused:
        raise CrbgError(
            f"the forward pass does not use {', '.join(map(repr, sorted(unused)))}; leave unused weights out with "
            "`where`, or remove their layers"
        )


def _recomputes(value: Tensor) -> bool:
    """Return whether the graph contains a reentrant checkpoint, whose gradients `autograd.grad` cannot compute."""
    nodes, seen = [value.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        nodes += [parent for parent, _ in node.next_functions]
    return False


def _gradients(value: Tensor, raw: dict[str, Tensor]) -> dict[str, Tensor | None]:
    if not value.requires_grad:
        return dict.fromkeys(raw)
    try:
        return dict(zip(raw, torch.autograd.grad(value, list(raw.values()), allow_unused=True), strict=True))
    except RuntimeError as error:
        hint = f"; {TO_FLOAT}" if "expected Float" in str(error) else ""
        raise CrbgError(f"the loss has no gradient: {reason(error)}{hint}") from error


def _scales(loss: Loss, out: Any, labels: Any, calls: list[LossCall]) -> bool:
    """Return whether doubling the logits in the outputs doubles the logits of each cross entropy in the loss."""
    if not calls or logits(out) is None or any(call.kind == "nll" for call in calls):
        return False
    with torch.no_grad(), LossCalls() as again:
        loss(with_logits(lambda t: 2 * t, out), labels)
    pairs = zip(calls, again.calls, strict=False)
    return len(again.calls) == len(calls) and all(torch.allclose(2 * a.logits, b.logits) for a, b in pairs)
