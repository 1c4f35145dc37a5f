"""The defaults of `find_ticket`.

They differ from the defaults of the methods' `Options`, which recorded runs depend on. They were chosen on the
development half of the zoo (`benchmarks/zoo.py`) and judged on its other half; benchmarks/zoo.md has the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from crbg import methods
from crbg.errors import CrbgError, suggest
from crbg.search.gain import variance_gains

GAINS = ("variance", "none")
TRAINING = ("pretrain", "joint_lr", "finetune")  # options of `crbg` that train weights


@dataclass(frozen=True)
class Choice:
    """The settings of a search: the method's options, the gains of the weights, and the name of the variant."""

    options: Any
    gains: dict[str, float]
    variant: str


def choose(
    model: nn.Module, method: str, given: Mapping[str, Any], density: float | None, gain: str | None, steps: int
) -> Choice:
    """Complete the options that the caller of `find_ticket` gives.

    Args:
        model: The network, without gates.
        method: Name of the method.
        given: Options of the method that the caller gives.
        density: The requested density.
        gain: `variance`, `none`, or None for the default: `variance` for `crbg` with frozen weights.
        steps: Number of optimiser steps of the search.

    Raises:
        CrbgError: the gain or an option is unknown or out of range, or a gain is requested for weights that change.
    """
    if gain is not None and gain not in GAINS:
        raise CrbgError(f"unknown gain {gain!r}: {suggest(gain, GAINS)}")
    frozen = methods.get(method).TRAITS.weights == "frozen" and not any(given.get(o) for o in TRAINING)
    if gain == "variance" and not frozen:
        raise CrbgError(f"gain 'variance' needs frozen weights, but {method} changes them; leave `gain` out")
    scaled = frozen and (gain == "variance" or (gain is None and method == "crbg"))
    parts = [method]
    if method == "crbg":
        given = _crbg(density, steps, given) | given
        parts.append("polished" if given.get("polish") else "thesis")
    elif method == "edge_popup" and scaled:
        given = {"scaled": False} | given  # the gain contains the factor sqrt(1 / density)
    # Without a density, `crbg` starts with half of the gates open.
    gains = variance_gains(model, density or 0.5) if scaled else {}
    return Choice(methods.options(method, given), gains, ", ".join([*parts, *(["gain variance"] if scaled else [])]))


def _crbg(density: float | None, steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of `crbg`.

    With gates on weights and a requested density, the variant is `polished`: gates without noise and without a penalty
    on undecided gates, and hard gates in the second half of the search. Otherwise it is the thesis's form.
    """
    if density is None or given.get("granularity", "weight") != "weight":
        return {}
    return {"noise": 0.0, "firmness": 0.0, "polish": 0.5, "lr": rate(steps)}


def rate(steps: int) -> float:
    """Return the learning rate of the gates, 0.03 sqrt(300 / steps), between 0.02 and 0.1.

    With Adam, a gate moves by at most the learning rate in a step, and it has to move by about 1.
    """
    return min(0.1, max(0.02, 0.03 * (300 / steps) ** 0.5))
