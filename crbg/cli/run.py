"""crbg run | evaluate | verify: execute runs, evaluate them on the test set, and verify their records."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from crbg.cli.arguments import Commands, add_cells, add_command, config_of, given, runs_of
from crbg.console import show
from crbg.errors import CrbgError
from crbg.runs import queue
from crbg.storage.atomic import write_text


def add(commands: Commands) -> None:
    """Add the commands of this module."""
    _add_run(commands)
    about = "Measure the selected specs of a main experiment on the test set, once."
    sub = add_command(commands, "evaluate", evaluate, about, "crbg evaluate lenet_curve")
    add_cells(sub)
    sub.add_argument("--out", type=Path, metavar="FILE", help="write a list of the runs to FILE (JSON)")
    about = (
        "Check finished runs against their spec, seed, data and ticket. Exit status 1: a run fails, or none is checked."
    )
    example = "crbg verify lenet_curve --where arm=crbg --out verified.md"
    sub = add_command(commands, "verify", verify, about, example)
    add_cells(sub)
    sub.add_argument("--out", type=Path, metavar="FILE", help="also write the table to FILE (Markdown)")


def _add_run(commands: Commands) -> None:
    about = "Run experiments; runs that are done already are skipped."
    example = "crbg run lenet_curve --where arm=crbg density=0.05 --seeds 0"
    sub = add_command(commands, "run", run, about, example)
    add_cells(sub)
    sub.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: `device` of the configuration)")
    sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: `threads` of the configuration)")
    sub.add_argument(
        "--deadline-minutes",
        type=float,
        default=math.inf,
        metavar="M",
        help=f"stop within M minutes; if runs are left, write a checkpoint and exit with status {queue.CONTINUE}",
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="write a list of the runs to FILE (JSON)")
    sub.add_argument(
        "--attempt",
        type=int,
        default=1,
        metavar="N",
        help="used by the workflow: number of this attempt at the job; from the second attempt on, runs that failed "
        "because of invalid input or an error in the code are not repeated",
    )
    sub.add_argument(
        "--slices",
        type=int,
        default=0,
        metavar="N",
        help="used by the workflow: give up on the job after N attempts (default: never)",
    )


def run(args: argparse.Namespace) -> int:
    """Execute the selected runs."""
    config = config_of(args)
    if not (args.experiment or args.job or args.where or math.isfinite(args.deadline_minutes)):
        raise CrbgError(
            "name an experiment or a target to run (see `crbg list experiments`), or `all`; "
            "`crbg plan` estimates the time"
        )
    call = queue.Call(
        args.deadline_minutes, args.attempt, args.slices, args.device, args.threads, args.job, manifest=args.out
    )
    return queue.do(config, runs_of(args, config), call)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate the selected specs on the test set."""
    config = config_of(args)
    queue.evaluate(config, runs_of(args, config), f"crbg select{given(args)}", args.out)


def verify(args: argparse.Namespace) -> int:
    """Verify finished runs."""
    config = config_of(args)
    cells = runs_of(args, config)
    from crbg.runs.verify import verify as verify_runs

    found = verify_runs(config, cells, queue.bench(config))
    show(*found.parts())
    if args.out:
        write_text(args.out, found.markdown())
    return int(found.failed)
