"""The names and the outcomes of runs as log lines."""

from __future__ import annotations

from crbg.experiments.config import Cell
from crbg.experiments.record import Record


def title(cell: Cell, differing: str = "") -> str:
    """Return the name of a run in log lines, with the settings in which it differs from the other runs of its arm."""
    return f"{cell.arm} {cell.spec.slug()} seed {cell.seed}" + (f" ({differing})" if differing else "")


def line(cell: Cell, record: Record, tested: float | None = None, where: str = "", differing: str = "") -> str:
    """Format the outcome of a run as a log line, with its test result and path if these are given."""
    name, best, constant = title(cell, differing), record.value(), record.controls().get("constant")
    if best is None:
        return f"{name}: {record.status}"
    metric = cell.spec.metric
    text = f"{name}: validation {metric.text(best)} at density {record.density:.4g}"
    if record.missed_density:
        text += ", cut to this density because the search did not reach it"
    if constant is not None and metric.better(best) <= metric.better(constant):  # older records lack it
        text += f", no better than always predicting {metric.constant}"
    return text + (f", test {metric.text(tested)}" if tested is not None else "") + (f" ({where})" if where else "")
