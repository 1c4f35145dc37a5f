"""Formatting of rows and numbers as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from crbg.report.records_table import metric_of
from crbg.report.stats import t_interval


def interval(values: list[float], digits: int = 2) -> str:
    """Format mean ± half-width of the 95 % t interval; for one or two values, format the mean and n instead."""
    i = t_interval(values)
    return f"{i.mean:.{digits}f} ± {i.half:.{digits}f}" if i.n > 2 else f"{i.mean:.{digits}f} (n = {i.n})"


def mean_of(rows: pd.DataFrame) -> str:
    """Format the mean of the metric over rows of one arm and setting, as `interval` does."""
    return interval(list(rows.value), metric_of(rows).digits)


def percent(density: float, form: str = ".1f") -> str:
    """Format a density as sparsity in %."""
    return f"{100 * (1 - density):{form}}"


def pipe(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Format rows as a Markdown table."""
    return tabulate([dict(r) for r in rows], headers="keys", tablefmt="pipe", disable_numparse=True)


def booktabs(table: pd.DataFrame) -> str:
    """Format a table as booktabs LaTeX."""
    plain = table.map(tex)
    plain.columns = [tex(c) for c in plain.columns]
    body = tabulate(plain.to_dict("records"), headers="keys", tablefmt="latex_raw", disable_numparse=True)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        body = body.replace(r"\hline", rule, 1)
    return body + "\n"


def tex(value: object) -> str:
    """Escape plain text for LaTeX."""
    text = re.sub(r"([%&#_$])", r"\\\1", str(value))
    for sign, command in (("±", r"$\pm$"), ("<", r"$<$"), (">", r"$>$"), ("^", r"\^{}"), ("~", r"\~{}")):
        text = text.replace(sign, command)
    return text
