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
    """A mean with its two-sided t interval and its standard error. With n = 1, the endpoints are infinite."""

    mean: float
    low: float
    high: float
    n: int
    error: float = math.nan

    @property
    def half(self) -> float:
        """Half-width of the interval."""
        return (self.high - self.low) / 2

    @property
    def bar(self) -> float:
        """Half-width for an error bar; 0 if n <= 2: the interval of two values is 13 times as wide as their range."""
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
    reach = t_reach(spread, n, level)
    return Interval(mean, mean - reach, mean + reach, n, spread)


def t_reach(error: float, n: int, level: float = 0.95) -> float:
    """Return the half-width of a t interval with n - 1 degrees of freedom; infinite for n = 1."""
    return math.inf if n == 1 else float(scipy_stats.t.ppf(0.5 + level / 2, n - 1)) * error


def seeds_to_decide(i: Interval, bound: float, power: float = 0.8, most: int = 10_000) -> int | None:
    """Return the number of seeds with which the 95 % interval of `i` would lie on one side of `bound`.

    The smallest n >= 2 with n >= ((t(0.975; n - 1) + t(power; n - 1)) s / |mean - bound|)^2, where t(q; v) is the q
    quantile of Student's t with v degrees of freedom, and s = error sqrt(n) is the standard deviation of one seed
    (paired: of the difference in one pair; Welch: of a difference of two independent runs). It assumes that the mean
    and s stay as they are, and that both arms get the same number of seeds.

    Returns:
        None if s is unknown (n = 1) or more than `most` seeds are needed.
    """
    gap = abs(i.mean - bound)
    if not math.isfinite(i.error) or not gap:
        return None
    s = i.error * math.sqrt(i.n)
    for n in range(2, most + 1):
        quantiles = float(scipy_stats.t.ppf(0.975, n - 1)) + float(scipy_stats.t.ppf(power, n - 1))
        if n >= (quantiles * s / gap) ** 2:
            return n
    return None


@dataclass(frozen=True)
class Contrast:
    """Difference of two arms, a - b, with its interval, two-sided p value and the name of the test."""

    difference: Interval
    p: float
    test: str


def paired(a: Sequence[float], b: Sequence[float]) -> Contrast:
    """Paired t test, for runs whose initial weights (before scaling) and data order are the same for each seed.

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
        return Contrast(Interval(mean, mean, mean, n, 0.0), 0.0 if mean else 1.0, "Welch")
    test = scipy_stats.ttest_ind(a, b, equal_var=False)
    ci = test.confidence_interval(0.95)
    error = math.sqrt(sum(float(np.var(v, ddof=1)) / len(v) for v in (a, b)))
    return Contrast(Interval(mean, float(ci.low), float(ci.high), n, error), float(test.pvalue), "Welch")


def holm(p_values: Sequence[float], declared: int | None = None) -> list[float]:
    """Return Holm's step-down adjusted p values, in the order of `p_values`.

    declared: the number of declared contrasts, including those without data. NaN marks a contrast without a test; it
    stays NaN and does not affect the others.
    """
    known = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    total, adjusted, worst = max(declared or 0, len(p_values)), [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(known):
        worst = max(worst, min(1.0, (total - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def value_verdict(ours: Sequence[float], published: float, margin: float) -> tuple[str, Interval | None]:
    """Compare the difference d = ours - published with a margin; return the verdict and the 95 % interval of d.

    Without runs, the verdict is "not run" and there is no interval.
    """
    if not ours:
        return "not run", None
    d = t_interval([v - published for v in ours])
    return margin_verdict(d, margin), d


def margin_verdict(d: Interval, margin: float) -> str:
    """Return the verdict on a difference d from a published value, using the 95 % interval of d.

    exceeded: the interval lies above +margin. reproduced: its lower end is >= -margin. not reproduced: its upper end is
    < -margin. Otherwise inconclusive.
    """
    if d.low > margin:
        return "exceeded"
    if d.low >= -margin:
        return "reproduced"
    return "not reproduced" if d.high < -margin else "inconclusive"


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if one of the two is constant."""
    return partial_rank_correlation(x, y, [0.0] * len(x))


def partial_rank_correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float | None:
    """Spearman's partial rank correlation of x and y, controlling for `given`.

    The correlation of the residuals of their ranks after linear regression on the ranks of `given`. None if the
    residuals of x or y are zero.
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
    """Return the `level` quantile of the absolute partial rank correlation over permutations (Freedman and Lane).

    The residuals of y are permuted and regressed on `given` again, so the part of y that `given` explains is preserved.
    The permutations have a fixed seed.
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
    """Return the residuals of `values`, column by column, after a linear regression on `given`."""
    fixed = given - given.mean()
    out: np.ndarray[Any, Any] = values - values.mean(axis=0)
    size = float(fixed @ fixed)
    return out - np.multiply.outer(fixed, fixed @ out) / size if size else out
