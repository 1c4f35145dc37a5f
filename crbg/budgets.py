"""Budgets of `find_ticket`: the size of the ticket's file, and the FLOPs of the sparse network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from crbg import measure, packing
from crbg.defaults import CHANGING, Settings
from crbg.errors import CrbgError
from crbg.gates.selection import candidate_mask
from crbg.masks.mask import Mask
from crbg.methods.contract import SearchResult, SearchTask
from crbg.models.initial_weights import fingerprints
from crbg.search.budget import Budget, Counts
from crbg.ticket import Ticket

UNITS = ("bytes", "flops")
LONG = 0.12345678901234568  # gains and logit scale of the ticket, which are not known yet, have no more digits


def budget_of(given: Mapping[str, float | None], density: Any, method: str, options: Mapping[str, Any]) -> str:
    """Return which of `UNITS` the caller of `find_ticket` gave, or an empty string.

    Raises:
        CrbgError: more than one, a density too, a value that is no positive number, or a method or granularity without
            budgets.
    """
    chosen = [name for name in UNITS if given[name] is not None]
    if not chosen:
        return ""
    if len(chosen) > 1 or density not in (..., None):
        raise CrbgError("pass one of `density`, `bytes` and `flops`; the others follow from it")
    limit = given[chosen[0]]
    if isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < limit < math.inf:
        raise CrbgError(f"{chosen[0]} {limit!r} must be a positive number")
    if method != "crbg":
        raise CrbgError(f"{chosen[0]}={limit} works with the method crbg; pass `density` to {method}")
    if trained := [name for name in (*CHANGING, "train_slopes") if options.get(name)]:
        raise CrbgError(f"{chosen[0]}={limit} is for frozen parameters, but {trained[0]} changes some; pass `density`")
    if options.get("granularity", "weight") != "weight" or options.get("steer") in ("shift_layers", "shift_erk"):
        raise CrbgError(f"{chosen[0]}={limit} needs one gate per weight and one threshold for all; pass `density`")
    return chosen[0]


def with_budget(task: SearchTask, model: nn.Module, unit: str, limit: float, settings: Settings) -> SearchTask:
    """Return the task of a search in a model with a budget, and with the first density of this search.

    Args:
        task: The task without the budget.
        model: The model, whose chosen weights carry gates.
        unit: One of `UNITS`.
        limit: Size in bytes of the file that `found.ticket().save(path)` writes, or FLOPs of a forward pass on one
            example, of which a multiply-add counts as two.
        settings: The settings of the search. They decide whether the file contains gains and a logit scale.

    Raises:
        CrbgError: no ticket or every ticket meets the budget, or the model does not take one tensor, which FLOPs need.
    """
    if unit == "bytes":
        budget = _of_bytes(limit, model, bool(settings.gains), getattr(settings.options, "temperature", 1.0) == 0.0)
    else:
        budget = _of_flops(limit, model, next(iter(task.batches.epoch(0)))[0])
    totals = {n: int(t.sum()) for n, t in candidate_mask(model).items()}
    return replace(task, budget=budget, density=budget.first_density(totals))


def cost(found: SearchResult, budget: Budget) -> str:
    """Return the cost of a ticket beside its budget."""
    value = len(found.ticket().to_bytes()) if budget.unit == "bytes" else budget.measure(found.mask)
    return f"{value:,.0f} of {budget.limit:,.0f} {budget.unit}"


def _of_bytes(limit: float, model: nn.Module, gains: bool, scaled: bool) -> Budget:
    whole = Mask(candidate_mask(model))
    if whole.total > packing.LARGEST:
        raise CrbgError(
            f"the masks of {whole.total:,} weights are not packed, so all files have one size; pass `density`"
        )
    statistics = measure.running(model) if measure.has_batch_norm(model) else {}
    digests, gain = fingerprints(model, whole), dict.fromkeys(whole, LONG) if gains else {}
    scale = LONG if scaled else 1.0
    empty = Ticket(whole, 0, "given", 1.0, "", (), 0, "0" * 64, {}, statistics, digests, gain, scale)

    def exact(mask: Mask) -> float:
        return len(replace(empty, mask=mask).to_bytes())

    fixed, unpacked = exact(Mask({n: torch.zeros_like(t) for n, t in whole.items()})), len(empty.to_bytes("bits"))

    def estimate(counts: Counts) -> float:
        return min(unpacked, fixed + sum(t * _entropy(k / t) for k, t in counts.values()) / 8)

    return Budget(limit, "bytes", estimate, exact, largest=0.5)


def _entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def _of_flops(limit: float, model: nn.Module, example: Any) -> Budget:
    if not isinstance(example, Tensor):
        raise CrbgError("flops needs a model that is called with one tensor; pass `density` or `bytes`")
    dense, layers = measure.layer_flops(model, example)

    def estimate(counts: Counts) -> float:
        return dense - sum((1 - k / t) * layers.get(n, 0.0) for n, (k, t) in counts.items())

    return Budget(limit, "FLOPs", estimate)
