"""crbg export: write a ticket in a form that is ready to ship."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crbg.cli.arguments import Commands, add_command, data_dir_of
from crbg.console import show
from crbg.export.registry import TARGETS, get


def add(commands: Commands) -> None:
    """Add the command of this module."""
    about = "Write a ticket in a form that is ready to ship, with a report of its sizes."
    sub = add_command(commands, "export", export, about, "crbg export ticket.safetensors --to packed --out shipped")
    sub.add_argument("ticket", type=Path, metavar="TICKET", help="a ticket file")
    targets = "; ".join(f"{name}: {target.about}" for name, target in TARGETS.items())
    sub.add_argument("--to", required=True, metavar="|".join(TARGETS), help=targets)
    sub.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for the files and report.json"
    )
    sub.add_argument(
        "--check",
        metavar="DATA",
        help="require the same predictions as the ticket's network on up to 1000 validation examples of this data set",
    )
    sub.add_argument("--bench", action="store_true", help="also measure speed")
    choices = {name: target.draws for name, target in TARGETS.items() if target.draws}
    sub.add_argument(
        "--draw",
        metavar="|".join(dict.fromkeys(draw for draws in choices.values() for draw in draws)),
        help=f"for --to {'|'.join(choices)}: whether weights are stored in the files, drawn from the seed at the "
        "start, or drawn on the fly whenever one is used (default: the first)",
    )


def export(args: argparse.Namespace) -> None:
    """Export one ticket."""
    get(args.to)  # before torch is imported
    from crbg.export.check import Examples
    from crbg.export.write import export_ticket
    from crbg.ticket import Ticket

    ticket = Ticket.load(args.ticket)
    examples = Examples.load(args.check, ticket, data_dir_of(args)) if args.check else None
    with _cleaned_up_after_sigterm():
        report = export_ticket(ticket, args.to, args.out, examples=examples, bench=args.bench, draw=args.draw)
    show(*report.parts(), f"{args.out}: {', '.join([*report.files, 'report.json'])}")


@contextmanager
def _cleaned_up_after_sigterm() -> Iterator[None]:
    """Inside the block, let SIGTERM raise SystemExit, so that unfinished files are removed as after an error."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
