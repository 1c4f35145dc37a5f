"""Sparsity of tickets in deep networks, by layer and by attention head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crbg.experiments import record_store
from crbg.experiments.config import Config, Experiment
from crbg.experiments.record import Record

DEEP = 5  # smallest number of gated tensors for which the sparsity by layer is drawn


@dataclass(frozen=True)
class Layers:
    """Tickets of one arm at one density.

    sparsity: in %, shape (seeds, layers). heads: sparsity in %, shape (seeds, blocks, 3, heads) for q, k and v, or None
    without attention. Blocks with fewer heads than others (Swin) are padded with NaN.
    """

    arm: str
    asked: float
    names: tuple[str, ...]
    sparsity: np.ndarray
    heads: np.ndarray | None


def layers(config: Config, e: Experiment) -> list[Layers]:
    """Collect the layer sparsities of an experiment's deep networks, for tickets whose layers differ in density."""
    found: dict[tuple[str, float], list[Record]] = {}
    for c in {(c.arm, *c.key): c for c in e.cells}.values():
        run = record_store.find_run(config, c.spec, c.seed)
        if run and c.spec.density is not None and len(run.record.depth or []) >= DEEP:
            found.setdefault((c.arm, c.spec.density), []).append(run.record)
    out = []
    for (arm, asked), records in found.items():
        names = tuple(records[0].depth or ())
        alike = [r for r in records if tuple(r.depth or ()) == names]
        counts = [[(r.layers or {})[n] for n in names] for r in alike]
        sparsity = np.array([[100 * (1 - count.kept / count.total) for count in row] for row in counts])
        if np.ptp(sparsity) > 0.5:
            out.append(Layers(arm, asked, names, sparsity, _heads(alike)))
    return out


def _heads(records: list[Record]) -> np.ndarray | None:
    """Return the sparsity of each head; None if fewer than two blocks have attention."""
    heads, layers = [r.heads or {} for r in records], [r.layers or {} for r in records]
    blocks = [n for n in records[0].depth or () if n in heads[0]]
    if len(blocks) < 2:
        return None
    out = np.full((len(records), len(blocks), 3, max(len(heads[0][n]["q"]) for n in blocks)), np.nan)
    for i in range(len(records)):
        for j, n in enumerate(blocks):
            for k, row in enumerate(heads[i][n].values()):
                out[i, j, k, : len(row)] = 100 * (1 - 3 * len(row) * np.array(row) / layers[i][n].total)
    return out
