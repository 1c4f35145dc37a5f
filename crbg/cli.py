"""The command line: crbg run | evaluate | verify | plan | status | list | data | select | record | report."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from crbg import methods, models
from crbg.data.datasets import DATA, own, root
from crbg.errors import CrbgError, suggest
from crbg.experiments import attempts, estimates, record_store, status
from crbg.experiments import config as configs
from crbg.experiments.config import Cell, Config, Experiment
from crbg.runs import queue
from crbg.storage.atomic import write_json, write_text
from crbg.training import distributed


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; a user's mistake prints one message and gives status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if distributed.started() and args.do is not _run:
            raise CrbgError("only `crbg run` works in several processes; start this one without torchrun")
        return int(args.do(args) or 0)
    except CrbgError as error:
        print(f"crbg: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "crbg: interrupted; finished runs are kept, and the same command goes on from the checkpoint of the last minute",
            file=sys.stderr,
        )
        return queue.INTERRUPTED
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crbg", description="Find strong lottery tickets, and prove it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, do: Callable[[argparse.Namespace], Any], about: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=about, description=about, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(do=do)
        sub.add_argument(
            "--config",
            nargs="+",
            default=["config.yaml"],
            metavar="FILE",
            help="later files are laid over earlier ones",
        )
        sub.add_argument(
            "--set", nargs="+", default=[], metavar="KEY=VALUE", help="top-level keys of the configuration"
        )
        return sub

    def cells(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("experiment", nargs="?", help="one experiment or target; all experiments if absent")
        sub.add_argument(
            "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only cells with, e.g., arm=crbg density=0.05"
        )
        sub.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these seeds instead of the configured ones")
        sub.add_argument("--job", metavar="NAME", help="exactly the cells of one job of the workflow")

    run = command("run", _run, "Run cells of experiments; what is done already is not run again.",
                  "crbg run lenet_curve --where arm=crbg density=0.05 --seeds 0")  # fmt: skip
    cells(run)
    run.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    run.add_argument("--threads", type=int, help="CPU threads of this process")
    run.add_argument("--deadline-minutes", type=float, default=math.inf, metavar="M",
                     help=f"stop before M minutes with status {queue.CONTINUE} and a checkpoint")  # fmt: skip
    run.add_argument("--out", type=Path, help="write a manifest of the cells here")
    run.add_argument(
        "--attempt",
        type=int,
        default=1,
        metavar="N",
        help="the workflow's how manieth try this is: from the second on, what cannot succeed is not tried again",
    )
    run.add_argument("--slices", type=int, default=0, metavar="N", help="give up after so many tries (0: never)")

    ev = command("evaluate", _evaluate, "Open the test set for the selected specs of a main experiment, once.",
                 "crbg evaluate lenet_curve")  # fmt: skip
    cells(ev)
    ev.add_argument("--out", type=Path, help="write a manifest of the cells here")

    ver = command("verify", _verify, "Check finished runs against their spec, seed, data and ticket; status 1 when one fails.",
                  "crbg verify lenet_curve --where arm=crbg --out verified.md")  # fmt: skip
    cells(ver)
    ver.add_argument("--out", type=Path, help="write the rows here too, as a Markdown table")

    data = command("data", _data, "Find or download a data set, check it, and say what it holds.", "crbg data mnist")
    data.add_argument("name", help="one of those that `crbg list` shows, or the name of your own")
    data.add_argument("--images", type=Path, metavar="DIR", help="make it of DIR/train/<class>/* and DIR/val/<class>/*")
    data.add_argument("--size", type=int, default=224, metavar="S", help="with --images: edge in pixels (default 224)")
    data.add_argument("--out", type=Path, help="write what was found here")
    estimate = command(
        "plan", _plan, "Say what would run, how long it takes, and what it needs.", "crbg plan lenet_curve"
    )
    cells(estimate)
    estimate.add_argument(
        "--minutes", type=float, metavar="M", help="say in which slices of M minutes what is missing comes"
    )
    state = command("status", _status, "Show what is done, running and missing.", "crbg status")
    cells(state)
    names = command(
        "list", _list, "List experiments, methods with their options, models and data sets.", "crbg list methods"
    )
    names.add_argument("kind", nargs="?", choices=LISTS, help="only these; everything if absent")
    names.add_argument("name", nargs="?", help="one of the methods: what it does, and what its options mean")
    sel = command(
        "select",
        _select,
        "Apply the selection rule to the tuning records and write paper/selected.yaml.",
        "crbg select",
    )
    sel.add_argument("--out", type=Path, help="write elsewhere, for comparison with the committed choice")
    sel.add_argument(
        "--partial", action="store_true", help="choose for the arms whose trials have all run, and leave the others out"
    )
    rec = command(
        "record", _record, "Copy finished records into results/recorded, to be committed.", "crbg record lenet_curve"
    )
    cells(rec)
    rec.add_argument("--tickets", action="store_true", help="copy their tickets too, under results/recorded/tickets")
    rep = command("report", _report, "Make tables, figures, verdicts and the HTML page from records.", "crbg report")
    rep.add_argument("experiment", nargs="?", help="only the table and figure of this experiment")
    rep.add_argument(
        "--brief", action="store_true", help="say in ten lines what is there and which files to open, write nothing"
    )
    rep.add_argument("--page", type=Path, help="write the HTML page here too")
    return parser


def _config(args: argparse.Namespace) -> Config:
    return configs.read(args.config, args.set)


def _experiments(config: Config, name: str | None) -> list[Experiment]:
    """Look up one experiment, the experiments of a target, or all of them."""
    targets = config.targets()
    if name in targets and name not in config.experiments:
        return targets[name]
    return [config.experiment(name)] if name else list(config.experiments.values())


def _cells(args: argparse.Namespace, config: Config) -> list[Cell]:
    chosen = _experiments(config, args.experiment)
    if args.job:
        jobs = {j.name: j for e in chosen for j in e.jobs()}
        if args.job not in jobs:
            raise CrbgError(
                f"no job {args.job!r}: {suggest(args.job, jobs)}; did the configuration change since it was planned?"
            )
        return list(jobs[args.job].cells)
    cells = [c for e in chosen for c in e.cells]
    for condition in args.where:
        key, eq, value = condition.partition("=")
        if not eq:
            raise CrbgError(f"--where {condition}: write KEY=VALUE, e.g. density=0.05")
        keep = [c for c in cells if _matches(c, key, value)]
        if not keep:
            seen = sorted({str(_value(c, key)) for c in cells})
            raise CrbgError(f"--where {condition}: no cell has that; {key} is one of {', '.join(seen)}")
        cells = keep
    if args.seeds and min(args.seeds) < 0:
        raise CrbgError(f"--seeds {min(args.seeds)}: seeds are whole numbers >= 0")
    return configs.with_seed(cells, args.seeds) if args.seeds else cells


def _value(cell: Cell, key: str) -> Any:
    if key == "arm":
        return cell.arm
    if key == "digest":
        return cell.spec.digest()
    holder: Any = cell.spec.resolved() if key.startswith("options.") else cell.spec
    name = key.removeprefix("options.")
    if not hasattr(holder, name):
        if hasattr(cell.spec.resolved(), key):
            raise CrbgError(f"--where {key}: it is an option of the method: options.{key}")
        raise CrbgError(f"--where {key}: {suggest(key, ['arm', *type(cell.spec).__dataclass_fields__])}")
    return getattr(holder, name)


def _matches(cell: Cell, key: str, text: str) -> bool:
    value = _value(cell, key)
    if isinstance(value, float):
        try:
            return math.isclose(value, float(text))
        except ValueError:
            return False
    return str(value) == text


def _bench(args: argparse.Namespace, config: Config, cells: Iterable[Cell] = ()) -> Any:
    return queue.bench(config, cells, getattr(args, "device", None), getattr(args, "threads", None))


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    return list({c.key: c for c in cells}.values())


def _run(args: argparse.Namespace) -> int:
    config = _config(args)
    if not (args.experiment or args.job or args.where or math.isfinite(args.deadline_minutes)):
        raise CrbgError(
            "say what to run: an experiment or a target (`crbg list experiments`), or all; `crbg plan` says what it costs"
        )
    cells = _unique(_cells(args, config))
    distributed.together = distributed.started()
    if not (args.job and distributed.first()):
        return _do_runs(args, config, cells)
    # A job of the workflow notes its own beginning before anything large is loaded, so that a kill for want of memory
    # shows.
    folder, outcome = record_store.job_folder(config, args.job), attempts.FAILED
    with suppress(OSError):  # a full disk is reported by what needs it
        attempts.begin(folder, attempt=args.attempt)
    try:
        code = _do_runs(args, config, cells)
        outcome = {0: attempts.DONE, queue.CONTINUE: attempts.PAUSED}.get(code, attempts.FAILED)
        return code
    except RuntimeError:
        outcome = attempts.KILLED if distributed.size() > 1 else outcome
        raise
    finally:
        with suppress(OSError):
            attempts.end(folder, outcome)


def _do_runs(args: argparse.Namespace, config: Config, cells: list[Cell]) -> int:
    if not distributed.first():
        return queue.search(_bench(args, config, cells), config, [], args.deadline_minutes)
    todo = [c for c in cells if not record_store.find(config, c.spec, c.seed)]
    if (unchosen := config.unchosen(todo)) and not config.demonstration:
        raise CrbgError(
            f"nothing is chosen yet for {', '.join(unchosen)}: run the tuning that `tuned_by` names, then `crbg select`"
        )
    if todo or distributed.size() > 1:  # several processes meet even where there is nothing to do
        if todo and 0 < args.slices < args.attempt:
            raise CrbgError(
                f"{len(todo)} runs are not done after {args.slices} tries, which is more than they should take by their estimate; "
                "`crbg status` shows what became of them, `crbg run` without --slices goes on"
            )
        before = queue.hopeless(config, todo)
        lost = before if args.attempt > 1 else {}
        for why in lost.values():
            print(why, flush=True)
        hopeful = [c for c in todo if c.key not in lost]
        # What failed before goes last: in slices of time it would else be tried again and again before anything else.
        hopeful.sort(key=lambda c: c.key in before)
        code = 0
        if hopeful or distributed.size() > 1:
            code = queue.search(_bench(args, config, hopeful or cells), config, hopeful, args.deadline_minutes)
        if code or lost:
            return code or queue.FAILED
    else:
        for c in cells[:10]:
            print(queue.line(c, *record_store.outcome(config, c.spec, c.seed)))
        print(
            f"all runs asked for ({len(cells)}) are done or recorded; `--set reuse=never results=FOLDER` runs them again"
        )
    _manifest(args.out, cells)
    return 0


def _manifest(path: Path | None, cells: list[Cell]) -> None:
    if path:
        write_json(path, {"cells": [{"run": c.spec.slug(), "seed": c.seed} for c in cells]})


def _evaluate(args: argparse.Namespace) -> int:
    config = _config(args)
    cells = _unique(c for c in _cells(args, config) if config.experiment(c.experiment).role == "main")
    if not cells:
        raise CrbgError(
            "only main experiments are evaluated on the test set; tuning and ablations read validation alone"
        )
    listed = configs.choices(config.paper)
    selected = configs.read_selected(listed)
    for c in cells:
        if not config.demonstration and c.spec.digest() not in selected.get("evaluate", {}).get(c.experiment, {}):
            raise CrbgError(
                f"{c.spec.slug()} is not listed in {listed}; the test set opens only for specs listed there: "
                f"run `crbg select{_given(args)}`, which writes {config.paper / listed.name}"
            )
    todo = [c for c in cells if not record_store.find(config, c.spec, c.seed, evaluated=True)]
    if todo:
        from crbg.runs.evaluate import evaluate

        bench, progress = _bench(args, config), queue.Progress(len(todo))
        for c in todo:
            out = evaluate(c.spec, c.seed, bench)
            exact = out.get("test", {}).get("readings", {}).get("binary", {}).get("accuracy")
            progress.finish(f"{queue.title(c)}: " + (f"test {exact:.2f} %" if exact is not None else out["status"]))
    _manifest(args.out, cells)
    return 0


def _verify(args: argparse.Namespace) -> int:
    config = _config(args)
    cells = _unique(_cells(args, config))
    from crbg.runs import verify

    runs = verify.finished(config, cells)
    if not runs:
        raise CrbgError(
            f"none of the {len(cells)} runs asked for is done, so nothing can be verified; `crbg status` says what is missing"
        )
    verifier, progress = verify.Verifier(config, _bench(args, config)), queue.Progress(len(runs))
    rows = verifier.rows(runs, progress.finish)
    print(verify.table(rows))
    for name, why in verifier.missing.items():
        print(f"data set {name!r} is not here, so its runs stay unchecked; `crbg data {name}` gets it ({why})")
    undone = f"; {len(cells) - len(runs)} of the runs asked for are not done" if len(runs) < len(cells) else ""
    print(verify.summary(rows) + undone)
    if args.out:
        write_text(
            args.out,
            f"# What `crbg verify` found\n\n{verify.summary(rows)}{undone}.\n\n{verify.table(rows, 'github')}\n",
        )
    return int(any(r.verdict == verify.FAIL for r in rows))


def _data(args: argparse.Namespace) -> int:
    from crbg.data.sources import load

    folder = _config(args).data_dir
    if args.images:
        from crbg.data.folder import prepare

        prepare(args.name, args.images, args.size, root(folder), lambda text: print(text, flush=True))
    found = load(args.name, folder)
    sizes = {part: len(getattr(found, part)) for part in ("train", "validation", "test")}
    print(
        f"{found.name}: {found.in_shape}, {sizes}, {len(found.lossy_test)} inexact test images, SHA-256 {found.digest}"
    )
    if args.out:
        write_json(args.out, {"name": found.name, "digest": found.digest, "images": sizes})
    return 0


def _plan(args: argparse.Namespace) -> int:
    config = _config(args)
    if args.minutes is not None:
        if args.minutes < 1:
            raise CrbgError(f"--minutes {args.minutes:g}: a slice has at least one minute")
        name = f" {args.experiment}" if args.experiment else ""
        print(estimates.schedule(config, _cells(args, config), args.minutes, name))
        return 0
    print(estimates.table(config, _cells(args, config)))
    return 0


def _status(args: argparse.Namespace) -> int:
    config = _config(args)
    print(status.table(config, _cells(args, config), _given(args)))
    return 0


def _given(args: argparse.Namespace) -> str:
    """Repeat the configuration that a command was given, for the commands that it suggests."""
    files = " --config " + " ".join(args.config) if args.config != ["config.yaml"] else ""
    return files + (" --set " + " ".join(args.set) if args.set else "")


def _list(args: argparse.Namespace) -> int:
    if args.name:
        if args.kind != "methods":
            raise CrbgError(
                f"`crbg list {args.kind}` takes no name; only methods have more to say, as `crbg list methods crbg` does"
            )
        method = methods.get(args.name)
        print("\n\n".join(inspect.cleandoc(str(o.__doc__)) for o in (method, *method.Options.__mro__[:-1])))
        return 0
    kinds = [args.kind] if args.kind else list(LISTS)
    blocks = []
    for kind in kinds:
        title, lines = LISTS[kind]
        blocks.append("\n".join([title] * (len(kinds) > 1) + [f"  {line}" for line in lines(args)]))
    print("\n\n".join(blocks))
    return 0


def _method_lines() -> Iterable[str]:
    for name in methods.names():
        method = methods.get(name)
        knobs = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(method.Options))
        yield f"{name:20s} {str(method.__doc__).splitlines()[0]}\n{'':22s} {knobs or 'no options'}"


LISTS: dict[str, tuple[str, Callable[[argparse.Namespace], Iterable[str]]]] = {
    "experiments": (
        "experiments (crbg run NAME)",
        lambda args: (
            f"{e.name:20s} {e.role:9s} {len(_unique(e.cells)):4d} runs   {e.about}"
            for e in _config(args).experiments.values()
        ),
    ),
    "methods": ("methods and their options", lambda args: _method_lines()),
    "models": (
        "models (patterns)",
        lambda args: (f"{stem:20s} {pattern}" for stem, pattern in models.families().items()),
    ),
    "data": (
        "data sets",
        lambda args: (
            f"{d.name:20s} {d.shape}, {d.train} train + {d.validation} validation + {d.test} test"
            for d in (*DATA.values(), *own())
        ),
    ),
}


def _select(args: argparse.Namespace) -> int:
    from crbg.experiments import selection

    config = _config(args)
    path = args.out or config.paper / "selected.yaml"
    print(selection.write(config, path, args.partial))
    return 0


def _record(args: argparse.Namespace) -> int:
    config = _config(args)
    if old := record_store.take_in(config):
        print(f"{old} files of the older layout taken in")
    cells = _unique(_cells(args, config))
    print(f"{record_store.record(config, cells)} runs recorded under {record_store.recorded_folder(config)}")
    if args.tickets:
        print(
            f"{record_store.record_tickets(config, cells)} tickets recorded under {record_store.recorded_folder(config) / 'tickets'}"
        )
    return 0


def _report(args: argparse.Namespace) -> int:
    from crbg.report import brief, build

    if args.brief:
        config = _config(args)
        print(brief(config, _experiments(config, args.experiment)))
        return 0
    build(_config(args), args.experiment, args.page, lambda line: print(line, flush=True))
    return 0
