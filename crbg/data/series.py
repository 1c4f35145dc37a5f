"""Series: forecasts of monthly sunspot numbers, and of a small generated series.

An example is a window of consecutive values and the values that follow it. The three parts are chronological. The
targets of a part lie in its own months; the inputs of its first windows lie in the months before, since a forecast may
use the whole past. No window of a part contains a value of a later part.

All values are standardised with the mean and the standard deviation of the training months. A mean squared error is
therefore a multiple of the variance of the training months, and the forecast of their mean has an error of about 1.

Repeating the last solar cycle, of about 132 months, is no naive forecast here, since a window has 96 months.

The file of sunspot numbers is that of the data set `sunspots` of statsmodels: monthly means from January 1749 to June
2009. Its notes say that February 1824 was interpolated and that the months after December 2008 are preliminary.
Sunspot numbers vary the more, the larger they are, so the values are their square roots, and the unit of the error is
the variance of the square roots of the training months.
"""

from __future__ import annotations

import calendar
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.data.datasets import DataInfo
from crbg.data.files import Source, fetch
from crbg.data.parts import Data, Part, TensorPart, digest_of
from crbg.errors import CrbgError

FILE = "sunspots_monthly.dat"
FILES = {
    FILE: Source(
        f"https://raw.githubusercontent.com/statsmodels/statsmodels/v0.14.0/statsmodels/datasets/sunspots/src/{FILE}",
        "cc303d26340b6d599bc2878899f8c50c12323dc04b52a26ad047965ea2b9d2a3",
    )
}
WIDTH = 6  # characters of a column of the table; the year takes the first column
TRAIN, VALIDATION = 60, 80  # per cent of the series at which the training and the validation part end
TOY_STEPS = 1000
STRENGTHS = tuple(10.0**k for k in range(-2, 5))  # of the ridge penalty, to choose from
HELD_OUT = 5  # the last 1/5 of the training windows choose the strength
Ridge = tuple[Tensor, Tensor, Tensor]  # mean input, mean target and coefficients (length, horizon)


def load(entry: DataInfo, root: Path, download: bool = True) -> Data:
    """Load `sunspots`, or generate `toy_series`.

    Args:
        entry: Description of the data set; `shape` is the length of a window, `classes` the number of values to
            forecast.
        root: The data root.
        download: Whether the file may be downloaded.

    Raises:
        CrbgError: the file is missing or damaged, a month is missing, or the series is too short.
    """
    if entry.name == "toy_series":
        values = toy()
    else:
        text = fetch(entry.name, FILES, root, download)[FILE].decode("ascii", "replace")
        values = [math.sqrt(v) for v in monthly(text, str(root / entry.name / FILE))]
    parts = split(values, entry.shape[0], entry.classes)
    fitted = functools.cache(partial(fit_ridge, parts[0]))  # once, although every run of a process asks for it
    naive: dict[str, Callable[[Part], float]] = {
        "persistence": persistence,
        "ridge": lambda part: _error(fitted(), *_double(part)),
    }
    return Data(entry.name, *parts, entry.classes, digest_of(parts), metric=entry.metric, naive=naive)


def monthly(text: str, place: str) -> list[float]:
    """Read a table with one row per year and one column per month; lines that do not start with a year are skipped.

    Months at the start of the first year and at the end of the last year can be blank.

    Args:
        text: The table, with columns of fixed width.
        place: Name of the file, for error messages.

    Returns:
        The values of consecutive months.

    Raises:
        CrbgError: a row is damaged, a year occurs twice, a month between the first and the last one has no value, or
            there is no value at all.
    """
    found: dict[int, float] = {}
    for line in text.splitlines():
        if not line[:4].isdecimal():
            continue
        year, row = int(line[:4]), line.rstrip()
        fields = [row[i : i + WIDTH].strip() for i in range(WIDTH, max(len(row), 13 * WIDTH), WIDTH)]
        try:
            numbers = [float(f) if f else None for f in fields]
        except ValueError:
            numbers = [math.nan]
        aligned = row.split() == [line[:4], *filter(None, fields)]  # a value across two columns would be cut
        if len(fields) != 12 or not aligned or not all(v is None or 0 <= v < math.inf for v in numbers):
            raise CrbgError(f"{place}: the row of {year} needs one number of at least 0 per month, but it is {row!r}")
        if found and 12 * year <= max(found):
            raise CrbgError(f"{place}: the row of {year} is repeated or out of order; sort the rows by year")
        found |= {12 * year + month: v for month, v in enumerate(numbers) if v is not None}
    if not found:
        raise CrbgError(f"{place} has no row that starts with a year; delete it and run `crbg data` again")
    for t in range(min(found), max(found) + 1):
        if t not in found:
            month = f"{calendar.month_name[t % 12 + 1]} {t // 12}"
            raise CrbgError(f"{place} has no value for {month}; fill this gap or shorten the series")
    return [found[t] for t in sorted(found)]


def toy() -> list[float]:
    """Generate a chaotic oscillation with measurement noise: the Mackey-Glass equation, every sixth unit of time.

    Its last value is a poor forecast, a linear forecast is good, and that of a small network is better.
    """
    noise = rng.normal(TOY_STEPS, 0, "toy_series")
    x, out = [1.2] * 18, []
    for t in range(6 * TOY_STEPS):
        square = x[-18] * x[-18]
        tenth = square * square * square * square * square  # the C library's `pow` may round differently
        x.append(0.9 * x[-1] + 0.2 * x[-18] / (1.0 + tenth))
        if t % 6 == 0:
            out.append(x[-1] + 0.03 * float(noise[t // 6]))
    return out


def split(values: Sequence[float], length: int, horizon: int) -> tuple[TensorPart, TensorPart, TensorPart]:
    """Standardise a series, and return the training, validation and test windows with stride 1.

    Args:
        values: The series.
        length: Number of values in a window.
        horizon: Number of values to forecast.

    Returns:
        Parts with inputs (N, length) and targets (N, horizon), float32.

    Raises:
        CrbgError: the series is constant in the training part, or it is too short for one window in each part and for
            the hold-out of `ridge`.
    """
    first, second = len(values) * TRAIN // 100, len(values) * VALIDATION // 100
    if first < (least := length + (HELD_OUT + 1) * horizon):  # then `ridge` can hold out windows, too
        raise CrbgError(
            f"a series of {len(values)} values is too short for windows of {length} and forecasts of {horizon}: its "
            f"first {TRAIN} % must have at least {least} values"
        )
    if min(values[:first]) == max(values[:first]):
        raise CrbgError("the training part of the series is constant, so it cannot be standardised")
    # `fsum` rounds once, so all machines get the same mean.
    mean = math.fsum(values[:first]) / first
    std = math.sqrt(math.fsum((v - mean) * (v - mean) for v in values[:first]) / first)
    series = torch.from_numpy(((np.array(values) - mean) / std).astype(np.float32))

    def part(start: int, end: int) -> TensorPart:
        windows = series[max(0, start - length) : end].unfold(0, length + horizon, 1)
        return TensorPart(windows[:, :length].contiguous(), windows[:, length:].contiguous())

    return part(0, first), part(first, second), part(second, len(values))


def persistence(part: Part) -> float:
    """Return the mean squared error on a part if the last value of the window is the forecast for every step."""
    x, y = part.batch(slice(None))
    return float((x[:, -1:] - y).double().square().mean())


def ridge(train: TensorPart, part: Part) -> float:
    """Return the mean squared error on a part of the model that `fit_ridge` returns."""
    return _error(fit_ridge(train), *_double(part))


def fit_ridge(train: TensorPart) -> Ridge:
    """Fit a linear autoregression with a ridge penalty.

    The strength of the penalty is the one with the smallest error on the last fifth of the training windows, for a fit
    to the windows whose targets precede the targets of this fifth. The model is then fitted to all training windows.
    """
    x, y = _double(train)
    held = len(x) - len(x) // HELD_OUT
    early = held - y.shape[1] + 1
    errors = {s: _error(_fit(x[:early], y[:early], s), x[held:], y[held:]) for s in STRENGTHS}
    return _fit(x, y, min(errors, key=errors.__getitem__))


def _double(part: Part) -> tuple[Tensor, Tensor]:
    """Return all inputs and targets of a part, float64."""
    x, y = part.batch(slice(None))
    return x.cpu().double(), y.cpu().double()


def _fit(x: Tensor, y: Tensor, strength: float) -> Ridge:
    centre, level = x.mean(0), y.mean(0)
    a = x - centre
    gram = a.T @ a + strength * torch.eye(x.shape[1], dtype=x.dtype)
    return centre, level, torch.linalg.solve(gram, a.T @ (y - level))


def _error(model: Ridge, x: Tensor, y: Tensor) -> float:
    centre, level, coefficients = model
    return float((level + (x - centre) @ coefficients - y).square().mean())
