"""The user's metric: a function of (outputs, labels) that returns a number."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from crbg.errors import CrbgError, reason
from crbg.training.forward import OWN_LOSS
from crbg.training.trees import shapes

MetricFunction = Callable[[Any, Any], Any]  # (outputs, labels) -> a number


def metric_name(metric: MetricFunction) -> str:
    """Return the name of a metric for reports."""
    return str(getattr(metric, "__name__", "metric")).replace("<lambda>", "metric")


def score(metric: MetricFunction, out: Any, labels: Any) -> float:
    """Return the metric of one batch.

    Raises:
        CrbgError: there are no outputs and labels, or the metric raises or does not return one number.
    """
    name = metric_name(metric)
    if labels is OWN_LOSS:
        raise CrbgError(
            f"the metric {name!r} takes outputs and labels, but only the loss of a batch is known; pass a function "
            "`forward` that returns (outputs, labels)"
        )
    place = f"the metric {name!r} was called with outputs {shapes(out)} and labels {shapes(labels)}, and"
    try:
        value = metric(out, labels)
    except Exception as error:
        raise CrbgError(
            f"{place} raised {reason(error)}; a metric takes the outputs of the model as they are, and the labels"
        ) from error
    if not isinstance(value, str):
        with suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    what = repr(value)[:60] if isinstance(value, str) else shapes(value)
    raise CrbgError(f"{place} returned {what}; it must return one number, the mean over the batch")
