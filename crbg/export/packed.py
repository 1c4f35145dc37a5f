"""The target `packed`: the ticket as one small file."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from crbg.errors import CrbgError
from crbg.export.check import Examples, compare, predictions
from crbg.ticket import Ticket
from crbg.ticket_file import read_header

FILE = "ticket.safetensors"


def write(ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
    """Write the ticket as a packed file, and compare the mask in the file with the ticket's mask.

    Raises:
        CrbgError: the file contains another mask.
    """
    ticket.save(folder / FILE)
    if Ticket.load(folder / FILE).mask != ticket.mask:
        raise CrbgError("the written file contains another mask than the ticket; please report this error")
    header = read_header((folder / FILE).read_bytes())
    return {"format": header["format"], "contexts": header.get("contexts", "bits")}


def check(ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
    """Rebuild the network from the file, and compare its predictions with those of the ticket's network."""
    expected, found = (predictions(t.model(), examples.inputs) for t in (ticket, Ticket.load(folder / FILE)))
    return compare(examples, expected, found)


def bench(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Measure the time to write and to read a packed file, and a file with one bit per weight."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as other:
        for pack, name in (("auto", "packed"), ("bits", "bits")):
            start = time.perf_counter()
            ticket.save(Path(other) / FILE, pack)
            written = time.perf_counter()
            Ticket.load(Path(other) / FILE)
            seconds |= {f"{name}_write_seconds": written - start, f"{name}_read_seconds": time.perf_counter() - written}
    return seconds
