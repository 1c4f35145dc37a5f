"""Targets in an engineer's units: a search that ends at a size in bytes of the ticket's file, or at a number of FLOPs.

The density that meets such a budget depends on how the search distributes the kept weights over the layers. So a search
adjusts its target density on the way, and cuts the final mask to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from crbg.errors import CrbgError
from crbg.masks.mask import Mask
from crbg.masks.select import candidates, select

WITHIN = 0.02  # the cost of a ticket is between (1 - WITHIN) of the budget and the budget
STEPS = 30  # most masks whose exact cost is computed for the final cut
Counts = Mapping[str, tuple[float, int]]  # kept and total weights, by name


@dataclass
class Budget:
    """A limit on the cost of a mask.

    Attributes:
        limit: The largest cost.
        unit: "bytes" or "FLOPs", for messages.
        estimate: Function of the numbers of kept weights per tensor that returns the cost approximately and fast. It
            grows with each number.
        exact: Function of a mask that returns its cost; None if the estimate is exact.
        largest: Density up to which the cost grows: 1/2 for bytes, because a mask with more kept weights is coded in
            fewer bits again.
        ratio: Exact cost divided by its estimate, measured during the search.
    """

    limit: float
    unit: str
    estimate: Callable[[Counts], float]
    exact: Callable[[Mask], float] | None = None
    largest: float = 1.0
    ratio: float = 1.0

    def first_density(self, totals: Mapping[str, int]) -> float:
        """Return the density that meets the budget if it is the same in all layers.

        Raises:
            CrbgError: no ticket meets the budget, or all tickets do.
        """
        count = sum(totals.values())
        cost = {d: self._estimated({n: (d * t, t) for n, t in totals.items()}) for d in (1 / count, self.largest)}
        least, most = cost.values()
        if self.limit < least:
            raise CrbgError(
                f"a ticket of this model costs at least {math.ceil(least):,} {self.unit}, more than {self.limit:,.0f}; "
                "raise the budget, or use a smaller model"
            )
        if self.limit > most:
            raise CrbgError(
                f"every ticket of this model costs at most {math.floor(most):,} {self.unit}, less than "
                f"{self.limit:,.0f}; pass `density` instead of a budget"
            )
        return min(self.largest, self._solve({n: (float(t), t) for n, t in totals.items()}, 1 / count))

    def scale(self, counts: Counts) -> float:
        """Return the factor on all numbers of kept weights that would meet the budget."""
        return self._solve(counts, 1e-4)

    def measure(self, mask: Mask) -> float:
        """Return the cost of a mask, and remember how much the estimate is off."""
        guess = self.estimate({n: (c["kept"], c["total"]) for n, c in mask.counts().items()})
        cost = self.exact(mask) if self.exact else guess
        self.ratio = cost / guess
        return cost

    def cut(self, scores: Mapping[str, Tensor], start: int) -> Mask:
        """Return the mask of the largest scores whose cost meets the budget within 2 %.

        Args:
            scores: One score per weight.
            start: Number of kept weights to try first.
        """
        low, high = 1, int(self.largest * sum(candidates(s) for s in scores.values()))
        best, k = None, min(max(start, low), high)
        for step in range(STEPS):
            mask = select(scores, k)
            cost = self.measure(mask)
            if cost <= self.limit:
                best, low = mask, k
                if cost >= (1 - WITHIN / 2) * self.limit:
                    break
            else:
                high = k - 1
            if low >= high:
                break
            counts = {n: (float(c["kept"]), c["total"]) for n, c in mask.counts().items()}
            aimed = round(k * self._solve(counts, 1e-4, (1 - WITHIN / 4) * self.limit))
            # The estimate assumes that all tensors lose the same part of their weights; bisection does not.
            k = aimed if low < aimed <= high and (step < 3 or step % 2) else (low + high + 1) // 2
        if best is None:
            raise CrbgError(f"no ticket of this search costs at most {self.limit:,.0f} {self.unit}; raise the budget")
        return best

    def _estimated(self, counts: Counts) -> float:
        return self.ratio * self.estimate(counts)

    def _solve(self, counts: Counts, least: float, limit: float = 0.0) -> float:
        """Return the factor on the counts with which the estimated cost equals the limit, by bisection."""
        limit = limit or self.limit
        low, high = math.log(least), math.log(1 / least)

        def cost(log: float) -> float:
            f = math.exp(log)
            return self._estimated({n: (min(self.largest * t, f * k), t) for n, (k, t) in counts.items()})

        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) < limit else (low, middle)
        return math.exp(low)
