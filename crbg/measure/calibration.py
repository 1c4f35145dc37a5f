"""Calibration of a classifier: how well its confidence predicts whether it is right."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in per cent (Naeini et al. 2015, Guo et al. 2017).

    The confidence of a prediction is its softmax probability. The error is the mean over `bins` intervals of equal
    width, weighted by their numbers of examples, of |accuracy - mean confidence|.

    Args:
        logits: Logits, (N, classes).
        labels: Classes, (N,).
        bins: Number of intervals of [0, 1].
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, of, right - confidence)
    return float(100 * gaps.abs().sum() / len(labels))


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T that minimises the cross-entropy of logits / T (Guo et al. 2017), between 1e-4 and 1e4."""
    logits = logits.double()
    found = minimize_scalar(
        lambda t: float(cross_entropy(logits / math.exp(t), labels)),
        bounds=(math.log(1e-4), math.log(1e4)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(found.x)
