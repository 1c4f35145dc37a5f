"""crbg select | robustness | record | report: turn finished runs into settings, measurements, records and tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from crbg.cli.arguments import Commands, add_cells, add_command, config_of, runs_of
from crbg.console import show
from crbg.errors import CrbgError
from crbg.experiments import listing, record_store
from crbg.experiments.cells import choose_cells, choose_experiments
from crbg.storage.atomic import write_text


def add(commands: Commands) -> None:
    """Add the commands of this module."""
    about = "Choose settings from the tuning runs and write paper/selected.yaml."
    sub = add_command(commands, "select", select, about, "crbg select")
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="write to FILE instead, to compare it with the committed choices"
    )
    sub.add_argument(
        "--partial", action="store_true", help="leave out arms with missing tuning runs, even if they have settings"
    )
    sub.add_argument("--verbose", action="store_true", help="list every choice with its settings")
    about = "Measure calibration, corrupted images, agreement and shared weights of the runs under `robustness`."
    sub = add_command(commands, "robustness", robustness, about, "crbg robustness --set results=FOLDER")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of robustness.csv in `results`")
    about = "Copy finished runs into results/recorded, to be committed."
    sub = add_command(commands, "record", record, about, "crbg record lenet_curve")
    add_cells(sub)
    sub.add_argument("--tickets", action="store_true", help="also copy their tickets to results/recorded/tickets")
    about = "Make tables, figures, verdicts and the HTML page from the finished runs."
    sub = add_command(commands, "report", report, about, "crbg report")
    sub.add_argument("experiment", nargs="?", metavar="NAME", help="write only the table and figure of this experiment")
    sub.add_argument("--brief", action="store_true", help="print a summary of a few lines, and write no files")
    sub.add_argument("--page", type=Path, metavar="FILE", help="also write the HTML page to FILE")


def select(args: argparse.Namespace) -> None:
    """Apply the selection rule."""
    from crbg.experiments import selection

    config = config_of(args)
    path = args.out or config.paper / "selected.yaml"
    choices, notes = selection.write(config, path, args.partial)
    if args.verbose:
        show(choices, *notes)
        return
    show(
        f"{path}: settings with the highest mean validation accuracy",
        listing.chosen(path),
        *notes,
        "`crbg select --verbose` lists the settings.",
    )


def robustness(args: argparse.Namespace) -> None:
    """Measure the runs that the configuration names under `robustness`."""
    config = config_of(args)
    if not config.robustness:
        raise CrbgError(f"{', '.join(config.files)}: `robustness` names no experiment")
    cells = [c for name, where in config.robustness.items() for c in choose_cells(config, name, where)]
    from crbg.runs import queue
    from crbg.runs.robustness import robustness as measure
    from crbg.runs.robustness import text

    path = args.out or record_store.robustness_file(config)
    rows = measure(config, cells, queue.bench(config))
    write_text(path, text(rows))
    show(f"{path}: {len(rows)} values of {len(cells)} runs")


def record(args: argparse.Namespace) -> None:
    """Copy finished runs into the committed records, and convert committed files of an older layout."""
    config = config_of(args)
    if old := record_store.convert_old_files(config):
        show(f"{old} files of the older layout converted")
    cells, folder = runs_of(args, config), record_store.recorded_folder(config)
    show(f"{record_store.record(config, cells)} runs recorded under {folder}")
    if record_store.record_robustness(config):
        show(f"{record_store.robustness_file(config).name} recorded under {folder}")
    if args.tickets:
        show(f"{record_store.record_tickets(config, cells)} tickets recorded under {folder / 'tickets'}")


def report(args: argparse.Namespace) -> None:
    """Make the report, or summarise it."""
    from crbg.report import brief, build

    config = config_of(args)
    if args.brief:
        show(brief(config, choose_experiments(config, args.experiment)))
    else:
        build(config, args.experiment, args.page, lambda line: print(line, flush=True))
