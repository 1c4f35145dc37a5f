"""The targets of `crbg export`: what each of them writes, and the module that writes it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from crbg.errors import CrbgError, suggest

if TYPE_CHECKING:
    from crbg.export.check import Examples
    from crbg.ticket import Ticket


class Exporter(Protocol):
    """The functions of a target's module. All values that they return must be plain JSON values."""

    def write(self, ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
        """Write the files of the target into an empty folder, and return details for the report.

        Raises:
            CrbgError: the target does not support this ticket.
        """

    def check(self, ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
        """Compare what was written with the ticket's own network, and return the result of `crbg.export.compare`.

        Raises:
            CrbgError: the predictions differ, or a tool that the check needs is missing.
        """

    def bench(self, ticket: Ticket, folder: Path) -> dict[str, Any]:
        """Measure the speed of what was written."""


@dataclass(frozen=True)
class Target:
    """An output format.

    Attributes:
        about: One line for `crbg export --help`.
        module: The module with the functions of `Exporter`; it is imported when the target is used.
        draws: Values of `--draw` that the target accepts, the default first; empty if it has no such choice.
    """

    about: str
    module: str
    draws: tuple[str, ...] = ()

    def load(self) -> Exporter:
        """Import the target's module."""
        return cast("Exporter", importlib.import_module(self.module))


TARGETS = {
    "packed": Target("the ticket as one small file, for Ticket.load", "crbg.export.packed"),
    "c": Target("a C99 program without dependencies", "crbg.export.c.target", ("stored", "start", "fly")),
    "onnx": Target("an ONNX file, checked in onnxruntime", "crbg.export.onnx"),
    "shrunk": Target("a PyTorch program without the dead units of the network", "crbg.export.shrunk"),
}


def get(name: str) -> Target:
    """Return a target by name.

    Raises:
        CrbgError: there is no such target.
    """
    if name not in TARGETS:
        raise CrbgError(f"unknown target {name!r}: {suggest(name, TARGETS)}")
    return TARGETS[name]
