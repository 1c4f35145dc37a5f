"""The library in one call: search for a ticket in any model, on any data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from numbers import Real
from types import EllipsisType
from typing import Any

import torch
from torch import nn

from crbg import budgets, defaults, measure, methods
from crbg.errors import CrbgError, few, warn
from crbg.gates.attach import weights
from crbg.gates.dtypes import floating_dtype
from crbg.gates.layers import unwrap
from crbg.gates.selection import Selection, Where, candidate_mask, choosing
from crbg.measure.metric import MetricFunction
from crbg.measure.ticket_report import Evaluation, advice
from crbg.methods.contract import SearchResult, SearchTask
from crbg.models.initial_weights import fingerprints, stored_weights, tensor_digest
from crbg.rng import torch_seed
from crbg.search import arguments, precheck
from crbg.search.gain import scaled
from crbg.search.loss_check import explained
from crbg.search.run_search import run_search
from crbg.search.snapshot import restored_on_error, unchanged
from crbg.training.batches import Batches
from crbg.training.clock import Clock
from crbg.training.device import check_precision, fork_rng
from crbg.training.forward import Forward, batch_size, for_any_outputs
from crbg.training.loop import Loss
from crbg.training.precision import suggested
from crbg.training.progress import reporting
from crbg.training.user_data import Reader

STATISTICS_BATCHES = 20  # the running statistics of a ticket are averaged over this many batches, or more until they
STATISTICS_EXAMPLES = 2000  # contain this many examples, but over one epoch at most
ZERO_SHARE = 0.01  # a larger share of weights that are exactly zero gives a warning
DENSE_SHARE = 0.1  # a larger share of matrix weights without gates gives a warning


def find_ticket(
    model: nn.Module,
    data: Any,
    density: float | EllipsisType | None = ...,
    method: str = "crbg",
    loss: Loss = nn.functional.cross_entropy,
    epochs: int = 10,
    seed: int = 0,
    batch: int = arguments.BATCH,
    progress: bool | Callable[[int, int], None] | None = None,
    *,
    where: Where = None,
    tied: str = "refuse",
    forward: Forward | None = None,
    steps: int | None = None,
    validation: Any = arguments.HELD_OUT,
    metric: MetricFunction | None = None,
    precision: str = "fp32",
    gain: str | None = None,
    bytes: float | None = None,
    flops: float | None = None,
    **options: Any,
) -> SearchResult:
    """Search for a sparse subnetwork of `model` that performs well without any training of its weights.

    Apply the returned result with `result.apply(model)`, and print it to see how good the ticket is. Weights change
    only with methods that train or redraw them; `result.changed` names these tensors.

    The method `crbg` runs the variant that `result.variant` names, with the defaults of `crbg.defaults`. `polish=0.0`
    selects the thesis's form.

    The search runs in training mode and restores the mode of every module, even if it raises. If `model.training` is
    True, submodules that are in eval mode, such as frozen batch norm, stay in it.

    If the loss is a cross entropy, the method `crbg` chooses a factor on the logits, `logit_scale`, from the first
    batch, because frozen weights can have any scale. On a CPU, it uses counter-based noise (`source="counter"`). If the
    model has batch norm, the running statistics of the sparse network are estimated after the search on at least 20
    batches and 2000 examples, or on one epoch if it is shorter, and `apply` loads them.

    Before the search, one forward and backward pass on the first batch finds data, models and losses that do not fit
    together. Afterwards, the ticket and the initial network are measured on held-out examples (`result.report`).

    Args:
        model: The network, already on the device that the search should use.
        data: A pair (inputs, labels) of tensors, arrays, data frames or lists; a data set; or a loader or list of
            batches. From a pair or a data set, shuffled batches are made. Inputs can be nested: a dict is passed to the
            model as keyword arguments, a tuple or list as positional arguments. A batch that is a dict with the key
            `labels`, as those of transformers, is passed as keyword arguments too.
        density: Fraction of gated weights to keep, kept / total; required without `bytes` and `flops`. None for methods
            that determine the density.
        method: Name of a method (`crbg list methods`).
        loss: Loss function of (outputs, labels) that returns the mean over the batch. A loss of `torch.nn` is given the
            logits in an output object: its attribute `logits`, or its only floating-point tensor.
        epochs: Number of passes over the data.
        seed: Seed of all random numbers in the search.
        batch: Batch size for data that are not batches yet.
        progress: By default, a bar with the remaining time is shown on a terminal if the search takes longer than a few
            seconds. True shows it everywhere, False nowhere. A function is called with (steps done, total steps).
        where: The weights that get gates, as for `crbg.attach`: a regular expression, a list of names or expressions,
            or a function of (name, weight). All other weights stay as they are. Weights that are exactly zero cannot be
            kept, and the density refers to the others.
        tied: What to do with a chosen weight that several layers share: "refuse" it, or "share" one gate.
        forward: Function of (model, batch) for data in any other format. It returns (outputs, labels), or the loss
            itself, and is used for all forward passes.
        steps: Number of batches per epoch, for loaders without a length; the loader starts again when it is exhausted.
            A validation loader without a length is read once, for at most as many batches.
        validation: Data on which the ticket is measured, or the fraction of a pair or a data set to hold out for this.
            If nothing can be held out (a loader, or fewer than ten examples), the report is on training batches and
            says so.
        metric: Function of (outputs, labels) that returns the mean of a quantity over the examples of a batch, measured
            in addition to loss and accuracy. The report contains its mean over all examples, so quantities that are no
            mean, such as an F1 score or R², need one batch. It is tried on the first batch before the search.
        precision: `fp32`; `bf16` for forward passes in bfloat16 with channels-last weights; or `auto`, which is `bf16`
            for a float32 model with convolutions on a device with bfloat16 instructions. Measurements are in fp32.
        gain: `variance` multiplies each weight tensor by a factor that keeps the signal's variance from layer to layer
            (`crbg.search.gain`). For polished `crbg`, it is multiplied by 0.7 if no such factor can be chosen, because
            the loss is no cross entropy of the model's logits. The factors belong to the ticket, as
            `result.weight_gain`. `none` leaves the weights as they are. By default, `variance` for polished `crbg` with
            frozen weights, else `none`.
        bytes: Instead of `density`: the largest size of the file that `found.ticket().save(path)` writes. The search
            adjusts its density, and the file has at least 98 % of this size. Only for `crbg` with gates on weights.
        flops: Instead of `density`: the largest number of FLOPs of a forward pass on one example, in the same way. A
            multiply-add counts as two FLOPs; operations without gates count in full.
        **options: Options of the method (`crbg list methods NAME` explains them).

    Raises:
        CrbgError: the method or an option is unknown, an argument is out of range, the model, the data, the loss and
            the method do not fit together, or a frozen tensor changed during the search.
    """
    arguments.check_arguments(model, data, density, loss, metric, where)
    model = unwrap(model)
    known = [f.name for f in fields(methods.get(method).Options)]
    options = defaults.completed(method, arguments.plain_options(method, options, known, find_ticket))
    limits, whole = {"bytes": bytes, "flops": flops}, arguments.whole
    unit = budgets.budget_of(limits, density, method, options)
    density = 0.5 if unit else arguments.density_of(density)  # `_search` chooses the first density for a budget
    epochs, seed = whole("epochs", epochs, 1), whole("seed", seed, 0)
    if problems := list(methods.conflicts(method, methods.options(method, options), density)):
        raise CrbgError("; ".join(problems))
    precheck.check_model(model)
    reader = Reader(
        whole("batch", batch, 1),
        seed,
        next(model.parameters()).device,
        floating_dtype(model),
        forward,
        steps if steps is None else whole("steps", steps, 1),
        own_loss=loss is nn.functional.cross_entropy,
    )
    # The caller may have switched gradients off, and dropout draws from torch's generator.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        fork_rng(reader.device),
        reporting(progress) as report,
    ):
        share = float(validation) if isinstance(validation, Real) else 0.0
        if not 0.0 <= share < 1.0:
            raise CrbgError(f"validation {validation!r} must be data, or a fraction of at least 0 and below 1")
        batches, held = reader.training(data, share)
        arguments.warn_of_unused(data, batches, held, reader.batch, share, steps)
        name = "held-out" if held else "training"
        if validation is not None and not isinstance(validation, Real):
            held, name = reader.validation(validation), "validation"
        task = SearchTask(
            batches,
            density,
            epochs,
            seed,
            for_any_outputs(loss),
            clock=Clock(report=report),
            selection=Selection(where, tied),
        )
        limit = (unit, float(limits[unit] or 0)) if unit else None
        return _search(model, method, options, gain, precision, Evaluation(held, name, task, metric), limit)


def _search(
    model: nn.Module,
    method: str,
    options: dict[str, Any],
    gain: str | None,
    precision: str,
    evaluation: Evaluation,
    limit: tuple[str, float] | None = None,
) -> SearchResult:
    """Check the first batch, measure the initial network, search, and measure the ticket.

    `limit` is a budget instead of the task's density: one of `crbg.budgets.UNITS`, and its value.
    """
    task, initial = evaluation.task, tensor_digest(stored_weights(model))
    seed = torch_seed(task.seed, "measurements")
    selection, clock = task.selection, task.clock
    assert selection is not None
    assert clock is not None
    # The gains below change the weights, so the choice of the weights that carry gates holds for the whole search.
    with choosing(model, selection):
        seen, precision = _check(model, task, precision, evaluation.metric)
        if evaluation.name == "validation" and evaluation.held:
            precheck.check_validation(model, evaluation.held, task.loss, evaluation.metric)
        chosen = defaults.choose(model, method, options, task.density, gain, seen.scalable)
        if limit:
            with unchanged(model, seed):
                task = budgets.with_budget(task, model, *limit, chosen)
            chosen = defaults.choose(model, method, options, task.density, gain, seen.scalable)
        if selection.where is None:
            _warn_of_dense_weights(model)
        _warn_of_zeros(model)
        methods.check_outputs(method, chosen.options, seen.outputs)
        with unchanged(model):
            before = evaluation.measure(model)
        clock.whole = round(methods.work(method, chosen.options, task.density, task.epochs) * len(task.batches))
        # Some methods change weights, which a failure during the measurements below must undo too.
        with restored_on_error(model):
            with scaled(model, chosen.gains), measure.training_mode(model), explained(task.batches):
                found = run_search(model, replace(task, precision=precision), methods.get(method), chosen.options)
            found.variant = chosen.variant
            found.weight_gain = {n: chosen.gains.get(n, 1.0) * float(found.gain.get(n, 1.0)) for n in found.mask}
            found.initial, found.parameters = initial, sum(p.numel() for p in model.parameters())
            with unchanged(model, seed):  # buffers can change in eval mode too, and loaders draw from torch's generator
                if found.start is None and measure.has_batch_norm(model):
                    batches = _for_statistics(task.batches)
                    found.statistics = measure.running_statistics(model, batches, found.multipliers())
                found.report = evaluation.report(model, found, before)
            found.tensors = fingerprints(model, found.mask)
            if task.budget:
                found.cost = budgets.cost(found, task.budget)
            if text := advice(found, task):
                warn(text)
    return found


def _for_statistics(batches: Batches) -> Iterator[Any]:
    """Yield the inputs of batches from which running statistics are estimated."""
    examples = 0
    for i, (x, y) in enumerate(batches.epoch(0)):
        if i >= STATISTICS_BATCHES and examples >= STATISTICS_EXAMPLES:
            return
        examples += batch_size(x, y)
        yield x


def _check(
    model: nn.Module, task: SearchTask, precision: str, metric: MetricFunction | None
) -> tuple[precheck.FirstBatch, str]:
    """Check the first batch, and return the precision of the search; `auto` is fp32 if the model fails in bfloat16."""
    device = next(model.parameters()).device
    if precision not in ("auto", "fp32", "bf16"):
        raise CrbgError(f"precision {precision!r} is unknown; choose auto, fp32 or bf16")
    check_precision(precision, device)
    if precision == "auto" and suggested(model, device) == "bf16":
        with contextlib.suppress(CrbgError):
            return precheck.check_first_batch(model, task.batches, task.loss, "bf16", metric), "bf16"
    precision = "fp32" if precision == "auto" else precision
    return precheck.check_first_batch(model, task.batches, task.loss, precision, metric), precision


def _warn_of_zeros(model: nn.Module) -> None:
    """Warn if more than a hundredth of the weights with gates are exactly zero."""
    there = candidate_mask(model)
    total, count = sum(t.numel() for t in there.values()), sum(int(t.sum()) for t in there.values())
    if total - count > ZERO_SHARE * total:
        warn(
            f"{total - count:,} of {total:,} weights with gates are exactly zero and cannot be kept; the density "
            f"refers to the other {count:,}"
        )


def _warn_of_dense_weights(model: nn.Module) -> None:
    """Warn if more than a tenth of the weights in matrices and larger tensors have no gate."""
    gated = {id(w) for w in weights(model).values()}
    matrices = {n: p for n, p in model.named_parameters() if p.ndim >= 2}
    dense = {n: p.numel() for n, p in matrices.items() if id(p) not in gated}
    share = sum(dense.values()) / max(1, sum(p.numel() for p in matrices.values()))
    if share > DENSE_SHARE:
        largest = sorted(dense, key=dense.__getitem__, reverse=True)
        warn(
            f"{share:.0%} of the matrix weights have no gate and stay dense: {few(largest)}; "
            "the density refers to the gated weights only"
        )
