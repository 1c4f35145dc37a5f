"""Execute many runs in one process, one after the other, until all are done or the time is up.

Several processes may share the same runs: a finished run is not repeated, and a run that another process is executing
is waited for. Importing this module does not import torch.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crbg.console import Progress
from crbg.errors import CrbgError, WriteError
from crbg.experiments import attempts, estimates, record_store
from crbg.experiments import config as configs
from crbg.experiments.cells import settings
from crbg.experiments.config import Cell, Config
from crbg.experiments.experiment import Key
from crbg.runs.lines import line, title
from crbg.runs.stop import CONTINUE, INTERRUPTED, Stop
from crbg.storage.atomic import write_json
from crbg.storage.lock import HeldError
from crbg.training import distributed

__all__ = ["CONTINUE", "FAILED", "INTERRUPTED", "Call", "bench", "do", "evaluate", "search", "sure_to_fail"]

FAILED = 1  # exit status when runs failed


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `crbg run`: time limit, device and output file.

    `attempt` is the number of times that the workflow has tried this job, this call included. After `slices` attempts,
    the workflow gives up; with `slices` = 0, it never gives up.
    """

    minutes: float = math.inf
    attempt: int = 1
    slices: int = 0
    device: str | None = None
    threads: int | None = None
    job: str | None = None
    manifest: Path | None = None


def do(config: Config, cells: list[Cell], call: Call) -> int:
    """Execute runs, alone or as one of several processes that share each run, and return an exit status.

    A job of the workflow logs its start before it loads anything large, so that an out-of-memory kill is noticed.
    """
    distributed.together = distributed.started()
    if not (call.job and distributed.first()):
        return _do(config, cells, call)
    folder, outcome = record_store.job_folder(config, call.job), attempts.FAILED
    with suppress(OSError):  # a full disk is reported later, when results are written
        attempts.begin(folder, attempt=call.attempt)
    try:
        code = _do(config, cells, call)
        outcome = {0: attempts.DONE, CONTINUE: attempts.PAUSED}.get(code, attempts.FAILED)
        return code
    except RuntimeError:
        outcome = attempts.KILLED if distributed.size() > 1 else outcome
        raise
    finally:
        with suppress(OSError):
            attempts.end(folder, outcome)


def _do(config: Config, cells: list[Cell], call: Call) -> int:
    if not distributed.first():
        return search(bench(config, cells, call.device, call.threads), config, [], call.minutes)
    todo = [c for c in cells if not record_store.find(config, c.spec, c.seed)]
    if (unchosen := config.unchosen(todo)) and not config.demonstration:
        raise CrbgError(
            f"no settings are chosen yet for {', '.join(unchosen)}: run the experiments that `tuned_by` names, then "
            "`crbg select`, with the same --config and --set"
        )
    if todo or distributed.size() > 1:  # several processes must all join, even if no run is missing
        if code := _do_missing(config, cells, todo, call):
            return code
    else:
        _say_done(config, cells)
    write_manifest(call.manifest, cells)
    return 0


def _do_missing(config: Config, cells: list[Cell], todo: list[Cell], call: Call) -> int:
    """Execute the missing runs, except those that failed in an earlier attempt of this job and would fail again."""
    if todo and 0 < call.slices < call.attempt:
        raise CrbgError(
            f"{len(todo)} runs are not done after {call.slices} attempts, which is more than the estimate requires; "
            "`crbg status` shows their state, and `crbg run` without --slices continues"
        )
    before = sure_to_fail(config, todo)
    lost = before if call.attempt > 1 else {}
    for why in lost.values():
        print(why, flush=True)
    worth_trying = [c for c in todo if c.key not in lost]
    # Runs that failed before are executed last. Otherwise each time slice would be spent on them first.
    worth_trying.sort(key=lambda c: c.key in before)
    code = 0
    if worth_trying or distributed.size() > 1:
        code = search(
            bench(config, worth_trying or cells, call.device, call.threads), config, worth_trying, call.minutes
        )
    return code or (FAILED if lost else 0)


def _say_done(config: Config, cells: list[Cell]) -> None:
    differing = settings(config, cells[:10])
    for c in cells[:10]:
        print(line(c, *record_store.outcome(config, c.spec, c.seed), differing=differing[c.key]))
    print(f"all requested runs ({len(cells)}) are done or recorded; `--set reuse=never results=FOLDER` runs them again")


def write_manifest(path: Path | None, cells: Iterable[Cell]) -> None:
    """Write a list of the runs to a file, if a path is given."""
    if path:
        write_json(path, {"cells": [{"run": c.spec.slug(), "seed": c.seed} for c in cells]})


def bench(config: Config, cells: Iterable[Cell] = (), device: str | None = None, threads: int | None = None) -> Any:
    """Set the number of threads, choose the device, and return the `Workspace` of this process.

    If the device is `auto`, a GPU is used if available; it is required if an experiment of the cells asks for one.

    Raises:
        CrbgError: the command line or an experiment asks for a GPU, but there is none.
    """
    import torch

    from crbg.runs.setup import Workspace
    from crbg.training.device import pick

    torch.set_num_threads(threads or config.threads)
    name = device or config.device
    if name == "auto" and (asking := next((c.experiment for c in cells if config.experiment(c.experiment).gpu), None)):
        if not torch.cuda.is_available():
            raise CrbgError(
                f"{asking} asks for a GPU (`gpu` in its configuration) and torch finds none; "
                "`--device cpu` runs it on the CPU"
            )
        name = "cuda"
    chosen = distributed.place(name, lambda one: pick(one, config.gpu_share))
    distributed.join(chosen)
    selected = None if config.demonstration else configs.choices(config.paper)
    return Workspace(config.results, config.data_dir, chosen, selected=selected)


def search(bench: Any, config: Config, cells: Sequence[Cell], minutes: float) -> int:
    """Execute the runs (see `lead`), or take part in them if another process leads."""
    from crbg.runs.execute import run_as_worker
    from crbg.training.clock import Clock

    if not distributed.first():
        with Stop() as asked:
            run_as_worker(bench, Clock(asked=asked))
        distributed.leave()
        return 0
    code = lead(bench, config, cells, minutes)
    if distributed.size() > 1:
        distributed.broadcast(None)
        distributed.leave()
    return code


def lead(bench: Any, config: Config, cells: Sequence[Cell], minutes: float) -> int:
    """Execute the runs and return an exit status: 0, FAILED, CONTINUE or INTERRUPTED.

    A run that fails does not stop the others. A run that another process is executing is moved to the end of the
    queue and waited for.

    Raises:
        WriteError: the disk of the results folder is full or read-only, so the other runs would fail too.
    """
    from crbg.runs.execute import execute
    from crbg.training.clock import Clock, OutOfTime

    deadline = time.monotonic() + 60 * minutes - estimates.margin(minutes)
    _check_inputs(bench, cells)
    waiting, differing, failed = deque(cells), settings(config, cells), 0
    held, said = 0, False  # number of consecutive runs held by other processes, and whether a message was printed
    with Stop() as asked, Progress(len(cells)) as progress:
        while waiting:
            cell = waiting.popleft()
            name = title(cell, differing[cell.key])
            try:
                clock = Clock(deadline=deadline, save_every=config.save_every, asked=asked, report=progress.step)
                record = execute(cell.spec, cell.seed, bench, clock)
            except HeldError as other:
                waiting.append(cell)
                held += 1
                if held >= len(waiting):
                    if not said:
                        progress.say(f"waiting: {other}")
                    said, held = True, 0
                    time.sleep(5)
            except OutOfTime as pause:
                progress.say(f"{name}: {pause}; the same command continues")
                return asked.status or CONTINUE
            except WriteError:
                raise
            except Exception as error:
                if distributed.size() > 1:
                    raise  # the other processes may be inside a step; torchrun ends them with this one
                why = str(error) if isinstance(error, CrbgError) else traceback.format_exc()
                progress.finish(f"{name}: FAILED: {why}")
                failed, held = failed + 1, 0
            else:
                progress.finish(line(cell, record, differing=differing[cell.key]))
                held = 0
            if waiting and (asked() or time.monotonic() >= deadline):
                return asked.status or CONTINUE
    if failed:
        print(f"{failed} of {len(cells)} runs failed; `crbg status` shows why, and how to repeat them", flush=True)
    return FAILED if failed else 0


def _check_inputs(bench: Any, cells: Sequence[Cell]) -> None:
    """Check the precision and the data of all runs before the first one starts, so that errors appear at once."""
    from crbg.training.device import check_precision

    for precision in {c.spec.precision for c in cells}:
        check_precision(precision, bench.device)
    for name in dict.fromkeys(c.spec.data for c in cells):
        bench.data(name)


def evaluate(config: Config, cells: Sequence[Cell], select: str, manifest: Path | None = None) -> None:
    """Evaluate selected specs of main experiments on the test set, once. Error messages suggest the command `select`.

    Raises:
        CrbgError: no cell belongs to a main experiment, or a spec is not selected.
    """
    mine = [c for c in cells if config.experiment(c.experiment).role == "main"]
    if not mine:
        names = ", ".join(dict.fromkeys(c.experiment for c in cells))
        raise CrbgError(f"only main experiments are evaluated on the test set; {names} uses validation only")
    listed = configs.choices(config.paper)
    selected = configs.read_selected(listed).get("evaluate", {})
    for c in mine:
        if not config.demonstration and c.spec.digest() not in selected.get(c.experiment, {}):
            raise CrbgError(
                f"{c.spec.slug()} is not listed in {listed}; only specs listed there may be evaluated on the test "
                f"set: run `{select}`, which writes {config.paper / listed.name}"
            )
    if undone := [c for c in mine if not record_store.find(config, c.spec, c.seed)]:
        name = undone[0].experiment
        raise CrbgError(f"{name}: {len(undone)} of {len(mine)} runs are not done; `crbg run {name}` runs them")
    todo = [c for c in mine if not record_store.find(config, c.spec, c.seed, evaluated=True)]
    if todo:
        _evaluate(config, todo)
    else:
        print(f"all requested runs ({len(mine)}) are evaluated; `crbg report` writes their accuracies")
    write_manifest(manifest, mine)


def _evaluate(config: Config, todo: Collection[Cell]) -> None:
    from crbg.runs.open_test_set import evaluate as open_test_set

    place, differing = bench(config), settings(config, todo)
    with Progress(len(todo)) as progress:
        for c in todo:
            out = open_test_set(c.spec, c.seed, place)
            said = f"test {c.spec.metric.text(out.value() or 0.0)}" if out else "collapse"
            progress.finish(f"{title(c, differing[c.key])}: {said}")


def sure_to_fail(config: Config, cells: Iterable[Cell]) -> dict[Key, str]:
    """Return the runs whose last attempt failed with an error that a retry would repeat, and a message for each."""
    out = {}
    for c in cells:
        last = attempts.last(record_store.run_folder(config, c.spec, c.seed))
        if last and last["outcome"] in attempts.FINAL:
            out[c.key] = f"{title(c)}: not repeated after a {last['outcome']}: {last.get('message')}"
    return out
