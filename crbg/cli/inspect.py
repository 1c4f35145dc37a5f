"""crbg plan | status | list | data: show what exists, what is missing, and what it would cost."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from crbg.cli.arguments import Commands, add_cells, add_command, cells_of, config_of, data_dir_of, given, selection
from crbg.console import show
from crbg.data.datasets import info, root
from crbg.errors import CrbgError
from crbg.experiments import listing, plan, status
from crbg.storage.atomic import write_json

# What `crbg list` can list, each with its title and a function that returns its lines.
LISTS: dict[str, tuple[str, Callable[[argparse.Namespace], Iterable[str]]]] = {
    "experiments": ("experiments, for `crbg run NAME`", lambda args: listing.experiments(config_of(args))),
    "methods": ("methods and their options", lambda args: listing.method_names()),
    "models": ("networks", lambda args: listing.networks()),
    "data": ("data sets", lambda args: listing.data_sets(data_dir_of(args))),
}


def add(commands: Commands) -> None:
    """Add the commands of this module."""
    about = "Show which runs are missing, how long they take, and what they need."
    sub = add_command(commands, "plan", show_plan, about, "crbg plan lenet_curve")
    add_cells(sub)
    sub.add_argument("--minutes", type=float, metavar="M", help="split the missing runs into time slices of M minutes")
    about = "Show which runs are done, running, failed (and why) or missing."
    add_cells(add_command(commands, "status", show_status, about, "crbg status"))
    about = "List experiments, methods with their options, networks and data sets."
    sub = add_command(commands, "list", show_list, about, "crbg list methods")
    sub.add_argument("kind", nargs="?", choices=LISTS, help="what to list (default: everything)")
    sub.add_argument("name", nargs="?", help="with `methods`: explain this method and its options")
    about = "Find or download a data set, check it, and describe it."
    sub = add_command(commands, "data", show_data, about, "crbg data mnist")
    sub.add_argument("name", help="a data set listed by `crbg list data`, or a name for your own (with --images)")
    sub.add_argument(
        "--images", type=Path, metavar="DIR", help="make the data set from DIR/train/<class>/* and DIR/val/<class>/*"
    )
    sub.add_argument(
        "--size", type=int, default=224, metavar="S", help="with --images: image size in pixels (default: 224)"
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the description to FILE (JSON)")


def show_plan(args: argparse.Namespace) -> None:
    """Show the missing runs, and the time and disk space that they need."""
    config = config_of(args)
    cells = cells_of(args, config)
    if args.minutes is None:
        show(*(plan.table if args.experiment or args.job else plan.summary)(config, cells))
    elif args.minutes < 1:
        raise CrbgError(f"--minutes {args.minutes:g}: a slice must be at least one minute long")
    else:
        name = f" {args.experiment}" if args.experiment else ""
        show(*plan.schedule(config, cells, args.minutes, name + selection(args) + given(args)))


def show_status(args: argparse.Namespace) -> None:
    """Show the state of runs."""
    config = config_of(args)
    view = status.table if args.experiment or args.job else status.summary
    show(*view(config, cells_of(args, config), given(args), selection(args)))


def show_list(args: argparse.Namespace) -> None:
    """List experiments, methods, networks and data sets, or explain one method."""
    if args.name:
        if args.kind != "methods":
            raise CrbgError(
                f"`crbg list {args.kind}` takes no name; only methods have details, e.g. `crbg list methods crbg`"
            )
        show(listing.explain(args.name))
        return
    kinds = [args.kind] if args.kind else list(LISTS)
    blocks = []
    for kind in kinds:
        title, lines = LISTS[kind]
        blocks.append("\n".join([title] * (len(kinds) > 1) + [textwrap.indent(line, "  ") for line in lines(args)]))
    if len(kinds) > 1:
        blocks.append(f"{', '.join(f'`crbg list {kind}`' for kind in kinds)} list one part.")
    show(*blocks)


def show_data(args: argparse.Namespace) -> None:
    """Load a data set, or make one from image files, and describe it."""
    from crbg.data.sources import load

    folder = data_dir_of(args)
    if args.images:
        from crbg.data.folder import prepare

        prepare(args.name, args.images, args.size, root(folder), lambda text: print(text, flush=True))
    found = load(args.name, folder)
    sizes = {part: len(getattr(found, part)) for part in ("train", "validation", "test")}
    shape = " x ".join(map(str, found.in_shape))
    what = info(args.name, folder).examples
    counts = f"{sizes['train']} training, {sizes['validation']} validation, {sizes['test']} test {what}"
    lossy = f" ({len(found.lossy_test)} of the test images with lossy compression)" if len(found.lossy_test) else ""
    show(f"{found.name}: {shape}; {counts}{lossy}; SHA-256 {found.digest}")
    if args.images and args.size > 64:
        show(f"Training on images of {args.size} pixels is slow; `--size 32` and another name make a smaller data set.")
    if args.out:
        write_json(args.out, {"name": found.name, "digest": found.digest, "images": sizes})
