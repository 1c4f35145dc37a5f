"""The names and the outcomes of runs as log lines."""

from __future__ import annotations

from crbg.experiments.config import Cell
from crbg.experiments.record import Record


def title(cell: Cell, differing: str = "") -> str:
    """Return the name of a run in log lines, with the settings in which it differs from the other runs of its arm."""
    return f"{cell.arm} {cell.spec.slug()} seed {cell.seed}" + (f" ({differing})" if differing else "")


def line(cell: Cell, record: Record, tested: float | None = None, where: str = "", differing: str = "") -> str:
    """Format the outcome of a run as a log line, with its test accuracy and path if these are given."""
    name, best, constant = title(cell, differing), record.accuracy(), record.controls().get("constant")
    if best is None:
        return f"{name}: {record.status}"
    text = f"{name}: validation {best:.2f} % at density {record.density:.4g}"
    if record.missed_density:
        text += ", cut to this density because the search did not reach it"
    if constant is not None and best <= constant:  # older records lack it
        text += ", no better than always predicting the most frequent class"
    return text + (f", test {tested:.2f} %" if tested is not None else "") + (f" ({where})" if where else "")
