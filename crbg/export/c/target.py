"""The target `c` of `crbg export`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crbg.errors import CrbgError
from crbg.export.c.host import Built
from crbg.export.c.write import to_c
from crbg.export.check import Examples, compare, predictions
from crbg.export.inputs import TIMED, one_thread, shortest
from crbg.measure.accuracy import eval_mode
from crbg.ticket import Ticket


def write(ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
    """Write model.c and model.h; see `crbg.export.to_c`."""
    return to_c(ticket, folder, draw or "stored")


def check(ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
    """Compile the program, run it on the examples, and compare its predictions with those of the ticket's network.

    Raises:
        CrbgError: there is no C compiler, or a prediction differs.
    """
    found = torch.from_numpy(Built(folder).predict(examples.inputs.numpy()))
    return compare(examples, predictions(ticket.model(), examples.inputs), found)


def bench(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Measure the time for batches of several sizes beside the dense network in torch, on one thread.

    The two take turns, and the shortest of several rounds counts.
    """
    model, program, times = ticket.model(), _fast(folder), dict[str, Any]()
    with one_thread(), eval_mode(model), torch.inference_mode():
        for batch in TIMED if program.batched else TIMED[:1]:
            x = np.random.default_rng(0).standard_normal((batch, *ticket.in_shape), np.float32)
            ours, torchs = shortest([program.call(x, batch=batch > 1), partial(model, torch.from_numpy(x))])
            times[f"batch {batch}: microseconds"] = 1e6 * ours
            times[f"batch {batch}: times faster than torch, dense"] = torchs / ours
    return times


def _fast(folder: Path) -> Built:
    """Compile for the processor of this machine, if the compiler knows it."""
    try:
        return Built(folder, flags=("-O3", "-march=native"))
    except CrbgError:
        return Built(folder)
