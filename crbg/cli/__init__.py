"""The command line.

The commands are: crbg run | evaluate | verify | export | plan | status | list | data | select | robustness | record |
report.

Each command parses its arguments, calls a function of the package, and prints the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crbg import __version__
from crbg.cli import export, inspect, publish, run
from crbg.errors import CrbgError
from crbg.runs.stop import INTERRUPTED
from crbg.training import distributed


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands. The attribute `do` of the parsed arguments is the function to call."""
    parser = argparse.ArgumentParser(
        prog="crbg", description="Find strong lottery tickets, compare methods, and verify the results."
    )
    parser.add_argument("--version", action="version", version=f"crbg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (run, export, inspect, publish):
        group.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; on invalid input, print one message and return status 2."""
    args = build_parser().parse_args(argv)
    try:
        if distributed.started() and args.do is not run.run:
            raise CrbgError("only `crbg run` supports several processes; start this command without torchrun")
        return int(args.do(args) or 0)
    except CrbgError as error:
        print(f"crbg: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "crbg: interrupted; finished runs are kept, and the same command continues from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        return 0
