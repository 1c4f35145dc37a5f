"""The validation part, drawn once by a rule that everyone can repeat."""

from __future__ import annotations

import numpy as np

from crbg import rng

SPLIT_SEED = 0  # the seed of the one fixed validation split of every data set


def stratified(labels: np.ndarray, count: int, seed: int, stream: str) -> np.ndarray:
    """Draw `count` indices with the class shares of `labels`; the largest remainders get the places left over."""
    classes, totals = np.unique(labels, return_counts=True)
    exact = totals * count / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = rng.permutation(len(labels), seed, stream)
    chosen = [order[labels[order] == c][:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))
