"""Intervals, paired and unpaired tests, corrections for several tests, rank correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from crbg.errors import CrbgError


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided t interval. With n = 1 the ends are infinite: one seed has no spread."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2

    @property
    def bar(self) -> float:
        """Half the width as an error bar; 0 for two values, whose interval is 13 times as wide as their distance."""
        return self.half if self.n > 2 else 0.0


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval for the mean of independent values.

    Raises:
        CrbgError: there are no values.
    """
    n = len(values)
    if n == 0:
        raise CrbgError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) / math.sqrt(n)
    reach = float(scipy_stats.t.ppf(0.5 + level / 2, n - 1)) * spread
    return Interval(mean, mean - reach, mean + reach, n)


@dataclass(frozen=True)
class Contrast:
    """Difference of two arms, a - b, with its interval, two-sided p and the name of the test."""

    difference: Interval
    p: float
    test: str


def paired(a: Sequence[float], b: Sequence[float]) -> Contrast:
    """Paired t test, for runs that share initial draw and data order seed by seed.

    Raises:
        CrbgError: a and b differ in length.
    """
    if len(a) != len(b):
        raise CrbgError(f"a paired test needs pairs: {len(a)} values against {len(b)}")
    d = t_interval([x - y for x, y in zip(a, b, strict=True)])
    if d.n < 2:
        return Contrast(d, math.nan, "none (n = 1)")
    if d.half == 0:
        return Contrast(d, 0.0 if d.mean else 1.0, "paired t")
    t = d.mean / (d.half / float(scipy_stats.t.ppf(0.975, d.n - 1)))
    return Contrast(d, float(2 * scipy_stats.t.sf(abs(t), d.n - 1)), "paired t")


def welch(a: Sequence[float], b: Sequence[float]) -> Contrast:
    """Welch's t test, for independent runs."""
    n = min(len(a), len(b))
    if n < 2:
        mean = math.fsum(a) / len(a) - math.fsum(b) / len(b)
        return Contrast(Interval(mean, -math.inf, math.inf, n), math.nan, "none (n = 1)")
    mean = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    if len(set(a)) == len(set(b)) == 1:
        return Contrast(Interval(mean, mean, mean, n), 0.0 if mean else 1.0, "Welch")
    test = scipy_stats.ttest_ind(a, b, equal_var=False)
    ci = test.confidence_interval(0.95)
    return Contrast(Interval(mean, float(ci.low), float(ci.high), n), float(test.pvalue), "Welch")


def holm(p_values: Sequence[float], declared: int | None = None) -> list[float]:
    """Holm's step-down adjusted p values, in the order given, over `declared` contrasts (also those without data).

    A NaN, for a contrast without a test, stays NaN and does not affect the others.
    """
    known = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    total, adjusted, worst = max(declared or 0, len(p_values)), [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(known):
        worst = max(worst, min(1.0, (total - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def value_verdict(ours: Sequence[float], published: float, margin: float) -> tuple[str, Interval | None]:
    """Judge d = ours - published against a margin, by the 95 % interval of d.

    exceeded: the interval lies above +margin. reproduced: its lower end is >= -margin. not reproduced: its upper end is
    < -margin. Otherwise inconclusive. Without runs: not run, and no interval.
    """
    if not ours:
        return "not run", None
    d = t_interval([v - published for v in ours])
    if d.low > margin:
        return "exceeded", d
    if d.low >= -margin:
        return "reproduced", d
    return ("not reproduced" if d.high < -margin else "inconclusive"), d


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if one of the two is constant."""
    return partial_rank_correlation(x, y, [0.0] * len(x))


def partial_rank_correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float | None:
    """Spearman's rank correlation of x and y given a third quantity: that of the residuals of their ranks on its ranks.

    None if the residuals of one of the two are zero.
    """
    a, b = _residuals(_ranks(x), _ranks(given)), _residuals(_ranks(y), _ranks(given))
    least = 1e-9 * len(x)
    if np.linalg.norm(a) < least or np.linalg.norm(b) < least:
        return None
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@lru_cache(maxsize=4096)
def partial_by_chance(
    x: tuple[float, ...], y: tuple[float, ...], given: tuple[float, ...], level: float = 0.95, draws: int = 1999
) -> float:
    """Give the bound on the size of the partial rank correlation in this share of permutations (Freedman and Lane).

    The residuals of y are permuted and regressed on the third quantity again, so that y keeps the part that this
    quantity explains. The permutations are always the same.
    """
    fixed = _ranks(given)
    a, b = _residuals(_ranks(x), fixed), _residuals(_ranks(y), fixed)
    drawn = np.random.default_rng(0).permuted(np.tile(b, (draws, 1)), axis=1)
    free = _residuals(drawn.T, fixed).T
    sizes = np.linalg.norm(free, axis=1) * np.linalg.norm(a)
    found = np.divide(np.abs(free @ a), sizes, out=np.zeros(draws), where=sizes > 1e-9)
    return float(np.quantile(found, level))


def _ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    return np.asarray(scipy_stats.rankdata(values), dtype=float)


def _residuals(values: np.ndarray[Any, Any], given: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give the residuals of values, or of each column of them, after a linear regression on another quantity."""
    fixed = given - given.mean()
    out: np.ndarray[Any, Any] = values - values.mean(axis=0)
    size = float(fixed @ fixed)
    return out - np.multiply.outer(fixed, fixed @ out) / size if size else out
