"""The target `packed`: the ticket as one small file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from crbg.errors import CrbgError
from crbg.export.check import Examples, compare, predictions
from crbg.ticket import Ticket

FILE = "ticket.safetensors"


def write(ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
    """Write the file, read it again, and compare the masks.

    Raises:
        CrbgError: the file contains another mask.
    """
    ticket.save(folder / FILE)
    if Ticket.load(folder / FILE).mask != ticket.mask:
        raise CrbgError("the written file contains another mask; please report this")
    return {}


def check(ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
    """Rebuild the network from the file, and compare its predictions with those of the ticket's network."""
    expected, found = (predictions(t.model(), examples.inputs) for t in (ticket, Ticket.load(folder / FILE)))
    return compare(examples, expected, found)


def bench(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Measure the time to read the file."""
    start = time.perf_counter()
    Ticket.load(folder / FILE)
    return {"load_seconds": time.perf_counter() - start}
