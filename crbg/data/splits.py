"""The split into training and validation images, reproducible on every machine."""

from __future__ import annotations

import numpy as np

from crbg import rng

SPLIT_SEED = 0  # seed of the fixed test split of a data set that has none


def stratified(labels: np.ndarray, count: int, seed: int, stream: str) -> np.ndarray:
    """Draw `count` indices with the class proportions of `labels` (stratified, by the largest remainder method).

    Args:
        labels: Class of each image, shape (n,).
        count: Number of indices to draw.
        seed: Seed of the sample.
        stream: Name of the random stream.

    Returns:
        Sorted indices, shape (count,).
    """
    classes, totals = np.unique(labels, return_counts=True)
    exact = totals * count / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = rng.permutation(len(labels), seed, stream)
    chosen = [order[labels[order] == c][:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))
