"""How good a ticket is: held-out loss and accuracy, beside the initial network and the most frequent class."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, reason, warn
from crbg.gates.dtypes import fraction
from crbg.masks.mask import Mask
from crbg.measure.accuracy import eval_mode
from crbg.measure.loss_calls import LossCalls
from crbg.measure.metric import MetricFunction, metric_name, score
from crbg.measure.sparsity import shares
from crbg.training.device import fork_rng
from crbg.training.forward import OWN_LOSS, batch_size, outputs_and_labels, with_logits
from crbg.training.loop import Loss

if TYPE_CHECKING:
    from crbg.methods.contract import SearchResult, SearchTask
    from crbg.training.batches import Batches

TRAINING_SHARE = 0.1  # share of the training batches that is measured if there are no other batches
FEW_STEPS = 200
NO_GAIN = 0.98  # a ticket with at least this fraction of the initial network's loss has learned nothing
FAR = 1.3  # a search that ends at a density that differs by a larger factor has missed its density by far


@dataclass(frozen=True)
class Measured:
    """Measurements of one network; a value that cannot be measured is None.

    Attributes:
        loss: Mean loss.
        accuracy: Accuracy in per cent, if the loss is a cross entropy; for sequences, over all tokens.
        metric: Mean of the user's metric.
        most_frequent: Accuracy in per cent of predicting the most frequent class.
        examples: Number of examples measured.
        labels: Number of labels that `accuracy` counts.
    """

    loss: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    most_frequent: float | None = None
    examples: int = 0
    labels: int = 0


@dataclass(frozen=True)
class TicketReport:
    """Measurements of a ticket, and what the gates did.

    Attributes:
        data: What was measured on: `held-out`, `validation`, or `training` batches.
        ticket: The ticket, as `SearchResult.apply` leaves the model.
        initial: The dense network before the search.
        metric: Name of the user's metric, if there is one.
        layers: Density of each gated tensor, by name.
        decided: Fraction of the gates that ended at exactly 0 or 1; None for methods whose gates are binary.
        reached: Whether the gates themselves reached the density; None for methods that always select the top k scores.
        natural: Density of the gates before the selection of the top k, where gates have one.
        logit_scale: Factor on the logits with which the loss of the ticket was measured, as in the search.
    """

    data: str
    ticket: Measured
    initial: Measured
    metric: str = ""
    layers: Mapping[str, float] = field(default_factory=dict, repr=False)
    decided: float | None = None
    reached: bool | None = None
    natural: float | None = None
    logit_scale: float = 1.0

    @property
    def at_chance(self) -> bool:
        """Whether the ticket is no better than the most frequent class, within one standard error."""
        accuracy, chance = self.ticket.accuracy, self.ticket.most_frequent
        if accuracy is None or chance is None:
            return False
        error = math.sqrt(chance * (100.0 - chance) / max(1, self.ticket.labels))
        return accuracy <= chance + error

    def __str__(self) -> str:
        """Return the report as a few lines of text."""
        t, dense = self.ticket, self.initial
        lines = [f"on {t.examples} examples ({self.data}):"]
        if t.loss is not None:
            scaled = f", with the logits times {self.logit_scale:.3g}" if self.logit_scale != 1.0 else ""
            lines.append(f"  loss {t.loss:.4g}{scaled}" + _beside(dense.loss, "{:.4g} of the dense initial network"))
        if t.accuracy is not None:
            lines.append(
                f"  accuracy {t.accuracy:.1f} %"
                + _beside(dense.accuracy, "{:.1f} % of the dense initial network")
                + _beside(t.most_frequent, "{:.1f} % of the most frequent class", " and ")
            )
        if t.metric is not None:
            of_dense = _beside(dense.metric, "{:.4g} of the dense initial network")
            lines.append(f"  {self.metric} {t.metric:.4g}{of_dense}")
        if self.decided is not None:
            lines.append(f"gates: {self.decided:.1%} ended at exactly 0 or 1")
        if self.reached is not None and self.natural is not None:
            how = "this is the mask" if self.reached else "the mask was cut to the top k"
            lines.append(f"density: the search ended with {self.natural:.4g} of the gates open; {how}")
        return "\n".join([*lines, *self._densities()])

    def _densities(self) -> list[str]:
        shown = [f"{n} {d:.3g}" for n, d in sorted(self.layers.items(), key=lambda item: item[1])]
        if len(shown) > 4:
            return [f"density of {len(shown)} tensors: from {shown[0]} to {shown[-1]}"]
        return [f"density by tensor: {', '.join(shown)}"] if shown else []


def _beside(value: float | None, text: str, before: str = "; ") -> str:
    return before + text.format(value) if value is not None else ""


@dataclass(frozen=True)
class Evaluation:
    """The batches on which the initial network and the ticket are measured.

    Attributes:
        held: Held-out or validation batches; None selects the beginning of the training batches.
        name: `held-out`, `validation` or `training`.
        task: The search task: training batches, loss and seed.
        metric: The user's metric, if any.
    """

    held: Batches | None
    name: str
    task: SearchTask
    metric: MetricFunction | None = None

    def measure(self, model: nn.Module, logit_scale: float = 1.0) -> Measured:
        """Measure a network without gates; modes and the state of the random generators do not change.

        The logits are multiplied by `logit_scale` inside the loss.
        """
        batches = self.held or self.task.batches
        count = len(batches) if self.held else max(1, round(TRAINING_SHARE * len(batches)))
        device = next(model.parameters()).device
        with fork_rng(device):
            # With this seed, a loader that shuffles with torch's global generator yields the same examples each time.
            # A shuffled data set and a stream depend on the epochs before, and may yield others.
            torch.manual_seed(self.task.seed)
            loss = self.task.loss if logit_scale == 1.0 else _at_scale(self.task.loss, logit_scale)
            return measure_network(model, itertools.islice(batches.epoch(0), count), loss, self.metric)

    def report(self, model: nn.Module, found: SearchResult, initial: Measured) -> TicketReport:
        """Measure the ticket on a copy of the model.

        Args:
            model: The network after the search.
            found: The result of the search.
            initial: Measurements of the network before the search.
        """
        ticket = Measured()
        try:
            ticket = self.measure(found.apply(copy.deepcopy(model)), found.logit_scale)
        except Exception as error:  # some models cannot be copied
            warn(f"the ticket cannot be measured on a copy of the model: {reason(error)}")
        name = metric_name(self.metric) if self.metric else ""
        summary = gate_summary(found, self.task.density)
        return TicketReport(self.name, ticket, initial, name, logit_scale=found.logit_scale, **summary)


def _at_scale(loss: Loss, scale: float) -> Loss:
    return lambda out, y: loss(with_logits(lambda t: t * scale, out), y)


def advice(found: SearchResult, task: SearchTask) -> str | None:
    """Return a warning that names the likely cause if a ticket is no better than chance or the initial network."""
    report = found.report
    if report is None:
        return None
    if report.ticket.accuracy is None:
        return _loss_advice(report)
    if not report.at_chance:
        return None
    steps, losses = task.epochs * len(task.batches), [row["loss"] for row in found.history if "loss" in row]
    natural = report.natural or found.mask.density
    if report.ticket.most_frequent == 100.0:
        cause = f"all labels of the {report.data} examples are one class", "check how the labels are loaded"
    elif steps < FEW_STEPS:
        cause = f"{steps} steps are few for a search", "raise `epochs`, or reduce `batch`"
    elif max(natural, found.mask.density) > FAR * min(natural, found.mask.density):
        cause = (
            f"the search ended at density {natural:.3g} and was cut to {found.mask.density:.3g}",
            "raise `epochs`, or the learning rate `lr` of the gates",
        )
    elif len(losses) > 1 and losses[-1] > 0.95 * losses[0]:
        cause = (
            "the loss did not fall during the search",
            "raise `lr` or `density`; in a deep network without normalisation, also enlarge the initial weights",
        )
    else:
        cause = "the ticket does not generalise beyond the training examples", "give more data, or raise `density`"
    return (
        f"the ticket's accuracy of {report.ticket.accuracy:.1f} % on {report.data} examples is not clearly better than "
        f"that of the most frequent class, {report.ticket.most_frequent:.1f} %. "
        f"Likely cause: {cause[0]}. Next: {cause[1]}"
    )


def _loss_advice(report: TicketReport) -> str | None:
    """Return a warning if the loss of a ticket without an accuracy is not clearly below that of the initial network."""
    loss, before = report.ticket.loss, report.initial.loss
    if loss is None or before is None or before <= 0 or loss < NO_GAIN * before:
        return None
    return (
        f"the ticket's loss of {loss:.4g} on {report.data} examples is not clearly below that of the dense initial "
        f"network, {before:.4g}. Next: scale inputs and labels to about one, raise `epochs`, or raise `density`"
    )


@torch.no_grad()
def measure_network(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Loss, metric: MetricFunction | None = None
) -> Measured:
    """Measure a network in eval mode; a measurement that raises is left out, with a warning.

    Args:
        model: A network without gates.
        batches: Pairs (inputs, labels).
        loss: The training loss.
        metric: Function of (outputs, labels) that returns the mean over the batch.
    """
    rows: list[_Row] = []
    try:
        with eval_mode(model):
            rows.extend(_measure_batch(model, x, y, loss, metric) for x, y in batches)
    except Exception as error:
        warn(
            f"batch {len(rows)} of the measurement cannot be computed, so this network is not measured: {reason(error)}"
        )
        rows = []
    for text in dict.fromkeys(text for row in rows for text in row.missing):
        warn(f"a measurement is left out: {text}")
    examples = sum(row.examples for row in rows)
    right, labels = sum(row.right for row in rows), torch.cat([_NO_LABELS, *(row.labels for row in rows)])
    known = len(labels) > 0
    return Measured(
        _mean([(row.loss, row.examples) for row in rows]),
        100.0 * right / len(labels) if known else None,
        _mean([(row.metric, row.examples) for row in rows]),
        100.0 * int(labels.bincount().max()) / len(labels) if known else None,
        examples,
        len(labels),
    )


_NO_LABELS = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class _Row:
    examples: int
    loss: float | None
    metric: float | None
    labels: Tensor
    right: int
    missing: list[str]


def _measure_batch(model: nn.Module, x: Any, y: Any, loss: Loss, metric: MetricFunction | None) -> _Row:
    value = rating = None
    missing: list[str] = []
    with LossCalls() as inside:
        out, target = outputs_and_labels(model, x, y)
    with LossCalls() as outside:
        try:
            value = float(loss(out, target))
        except Exception as error:
            missing.append(f"the loss raised {reason(error)}")
    if metric:
        try:
            rating = score(metric, out, target)
        except CrbgError as error:
            missing.append(str(error))
    labels, right = _NO_LABELS, 0
    calls = inside.calls if target is OWN_LOSS else outside.calls
    if len(calls) == 1:
        found = calls[0].labels()
        labels, right = found.flatten().long().cpu(), int((calls[0].predictions() == found).sum())
    size = batch_size(x, y)
    # No tensor is found in an object of torch_geometric, which keeps its tensors in an inner object; the labels that
    # `forward` returned have one entry for each example then.
    if size == 1 and target is not OWN_LOSS:
        size = batch_size(x, target)
    return _Row(size, value, rating, labels, right, missing)


def _mean(values: Sequence[tuple[float | None, int]]) -> float | None:
    """Return the mean weighted by the number of examples; None if a value is missing."""
    known = [(v, n) for v, n in values if v is not None]
    return sum(v * n for v, n in known) / sum(n for _, n in known) if known and len(known) == len(values) else None


def gate_summary(found: SearchResult, density: float | None) -> dict[str, Any]:
    """Return the fields of `TicketReport` that describe the mask and the gates.

    Args:
        found: The result of a search.
        density: The requested density.
    """
    layers = {n: fraction(t) for n, t in found.mask.items()}
    decided = 1.0 - shares(found.soft)["all"]["fractional"] if found.soft else None
    if density is None or found.exact is None:  # the method selects the top k, or the gates alone decide
        return {"layers": layers, "decided": decided}
    half = Mask({n: s > 0.5 for n, s in found.scores.items()})
    return {"layers": layers, "decided": decided, "reached": half == found.mask, "natural": half.density}
