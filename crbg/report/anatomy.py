"""The structure of a ticket: layer densities, dead units, first-layer mask, histogram of mu, gates over training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from crbg.experiments import record_store
from crbg.experiments.config import Cell, Config
from crbg.experiments.record import Record
from crbg.experiments.spec import Spec


@dataclass(frozen=True)
class Anatomy:
    """One ticket with its record.

    statistics: what the search recorded about its gates (`Record.anatomy`). first: the number of kept first-layer
    weights connected to each input pixel, shape (rows, columns).
    """

    cell: Cell
    record: Record
    statistics: Mapping[str, Any]
    first: np.ndarray


def shown(config: Config) -> list[Cell]:
    """Choose the tickets to show: the densest, a middle and the sparsest one of each arm of a curve, at one seed."""
    out = []
    for e in config.experiments.values():
        arms: dict[str, dict[float, Cell]] = {}
        for c in e.cells if e.role == "main" and e.view == "curve" else ():
            if c.spec.density is not None and c.spec.epochs and c.spec.model.startswith("lenet-"):
                arms.setdefault(c.arm, {}).setdefault(c.spec.density, c)
        for found in arms.values():
            order = sorted(found, reverse=True)
            out += [found[d] for d in dict.fromkeys((order[0], order[len(order) // 2], order[-1]))]
    return out


def tickets(config: Config) -> list[Anatomy]:
    """Load the tickets chosen by `shown` that exist, new or committed, if their record has search statistics."""
    out = []
    for c in shown(config):
        path, run = record_store.ticket_path(config, c.spec, c.seed), record_store.find_run(config, c.spec, c.seed)
        if path and run and run.record.anatomy:
            out.append(Anatomy(c, run.record, run.record.anatomy, _first_layer(path, c.spec)))
    return out


def _first_layer(path: Path, spec: Spec) -> np.ndarray:
    """Count the kept first-layer weights by input pixel. The file packs all masks in name order, one bit per weight."""
    inputs, units = spec.layer_sizes()[0]
    bits = np.unpackbits(load_file(path)["mask"])[: units * inputs]
    return np.asarray(bits.reshape(units, *spec.in_shape()).sum((0, 1)))
