"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from crbg.experiments import config as configs
from crbg.experiments.cells import choose_cells
from crbg.experiments.config import Cell, Config
from crbg.experiments.experiment import distinct

Commands = Any  # argparse's own type of subparsers is private
DEFAULT = ["config.yaml"]


def add_command(
    commands: Commands, name: str, do: Callable[[argparse.Namespace], int | None], about: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with its help, an example, and the arguments that select its configuration."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(do=do)
    parser.add_argument(
        "--config",
        nargs="+",
        default=DEFAULT,
        metavar="FILE",
        help="configuration files; later ones override earlier ones (default: config.yaml)",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="override top-level keys of the configuration"
    )
    return parser


def add_cells(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select runs."""
    parser.add_argument("experiment", nargs="?", metavar="NAME", help="an experiment or a target (default: everything)")
    parser.add_argument(
        "--where",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with these settings, e.g. arm=crbg density=0.05",
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="use these seeds, not the configured ones")
    parser.add_argument("--job", metavar="JOB", help="only the runs of this job of the workflow")


def config_of(args: argparse.Namespace) -> Config:
    """Read the configuration that the arguments select."""
    return configs.read(args.config, args.set)


def data_dir_of(args: argparse.Namespace) -> str | None:
    """Return the data root that the configuration sets. Without `--config`, a configuration is not required."""
    absent = args.config == DEFAULT and not Path(*DEFAULT).exists()
    return configs.read_data_dir([] if absent else args.config, args.set)


def cells_of(args: argparse.Namespace, config: Config) -> list[Cell]:
    """Return the selected cells; a run that several experiments share is listed once for each of them."""
    return choose_cells(config, args.experiment, args.where, args.seeds, args.job)


def runs_of(args: argparse.Namespace, config: Config) -> list[Cell]:
    """Return the selected runs, each of them once."""
    return list(distinct(cells_of(args, config)).values())


def given(args: argparse.Namespace) -> str:
    """Return the arguments `--config` and `--set` as text, to append them to suggested commands."""
    files = args.config if args.config != DEFAULT else []
    return _as_text("--config", files) + _as_text("--set", args.set)


def selection(args: argparse.Namespace) -> str:
    """Return the arguments that select runs of an experiment as text, to append them to suggested commands."""
    if args.job:  # as in `choose_cells`, a job replaces the other conditions
        return f" --job {args.job}"
    return _as_text("--where", args.where) + _as_text("--seeds", map(str, args.seeds or ()))


def _as_text(option: str, values: Iterable[str]) -> str:
    words = list(values)
    return f" {shlex.join([option, *words])}" if words else ""
