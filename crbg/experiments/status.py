"""The output of `crbg status`: the state of every run, why runs failed, and the commands to continue them.

This module does not import torch.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crbg.console import Table
from crbg.experiments import attempts, record_store
from crbg.experiments.config import Cell, Config
from crbg.experiments.experiment import Key, distinct
from crbg.experiments.plan import by_target, needs
from crbg.experiments.record import Run
from crbg.storage import lock

STATES = ("done", "collapsed", "running", "failed", "paused", "missing")
LEFT = ("failed", "paused", "missing")  # states in which a run still has to be done
MOST_ROWS = 40
MOST_LOGS = 10
MOST_COMMANDS = 5
LAST_LINES = 5  # number of lines that are quoted from a log

COLLAPSED = (
    "A collapsed run is finished: its loss became infinite or NaN, or a layer lost all its weights. This outcome is\n"
    "recorded, and there is nothing to repair: the same settings would collapse again. `crbg select` does not choose\n"
    "such settings; a lower learning rate or a higher density avoids the collapse."
)


@dataclass(frozen=True)
class State:
    """The state of one run: its name, the number of attempts, the reason, and the message to quote."""

    cell: Cell
    name: str
    tries: int = 0
    why: str = ""
    said: str = ""


def state_of(config: Config, cell: Cell, run: Run | None) -> State:
    """Determine the state of a run from its record if it is finished, else from its lock and the log of attempts."""
    if run and run.record.ok:
        return State(cell, "done")
    where = record_store.run_folder(config, cell.spec, cell.seed)
    tries = attempts.read(where)
    if run:
        return State(cell, "collapsed", len(tries), run.record.reason or "")
    if by := lock.held(where):
        return State(cell, "running", len(tries), by)
    why, said = attempts.reason(tries, config.results / "logs")
    name = "missing" if not why else "paused" if why == attempts.PAUSED else "failed"
    return State(cell, name, len(tries), why, said)


def summary(config: Config, cells: list[Cell], given: str = "", chosen: str = "") -> list[str | Table]:
    """Return a table of the number of runs in each state, by experiment, and a list of the unfinished runs.

    The list contains the runs that started but did not finish. It is followed by explanations of failures and by the
    commands that continue (see `table`).
    """
    found = record_store.find_runs(config, cells)
    states = {key: state_of(config, c, found[key]) for key, c in distinct(cells).items()}
    runs: dict[str, set[Key]] = {}
    for c in cells:
        runs.setdefault(c.experiment, set()).add(c.key)
    counts = {name: Counter(states[key].name for key in keys) for name, keys in runs.items()}
    total = Counter(s.name for s in states.values())
    shown = ("done", *(name for name in STATES[1:] if total[name]))
    unfinished = {name for name, count in counts.items() if any(count[s] for s in ("running", *LEFT))}
    hours, together = _hours_left(config, [c for c in cells if c.experiment in unfinished], found)
    rows = [
        (*place, counts[name].total(), *(counts[name][s] for s in shown), hours.get(name, "0.00"))
        for name, place in by_target(config.experiment(n) for n in counts)
    ]
    last = ("total", "", "", total.total(), *(total[s] for s in shown), together)
    begun = [s for s in states.values() if s.name in ("running", "failed", "paused")]
    parts: list[str | Table] = [
        _line(total),
        Table(("target", "experiment", "role", "runs", *shown, "hours left"), rows, last),
    ]
    more = "`crbg status NAME` lists the runs of an experiment or target; `crbg plan` separates CPU and GPU hours."
    return [*parts, more, *_rows(begun), *_explain(config, list(states.values()), given, chosen)]


def _hours_left(config: Config, cells: list[Cell], found: Mapping[Key, Run | None]) -> tuple[dict[str, str], str]:
    """Estimate the hours that the unfinished runs take, for each experiment and in total."""
    left: dict[str, float] = {}
    once: dict[Key, float] = {}
    for key, c, need in needs(config, cells, found):
        seconds = need.cpu_seconds + need.gpu_seconds
        left[c.experiment] = left.get(c.experiment, 0.0) + seconds
        once.setdefault(key, seconds)
    return {name: f"{seconds / 3600:.2f}" for name, seconds in left.items()}, f"{sum(once.values()) / 3600:.2f}"


def table(config: Config, cells: list[Cell], given: str = "", chosen: str = "") -> list[str | Table]:
    """Return a table of all runs that are not done, with state, number of attempts and reason.

    It is followed by the last log lines of failed runs and by the commands that execute only the runs that are not
    done. `given` is appended to these commands, so that they read the same configuration. `chosen` contains the
    arguments that selected the cells within their experiments; a command for a whole experiment repeats them.
    """
    found = record_store.find_runs(config, cells)
    states = [state_of(config, c, found[key]) for key, c in distinct(cells).items()]
    rows = sorted((s for s in states if s.name != "done"), key=lambda s: s.name == "missing")
    return [_line(Counter(s.name for s in states)), *_rows(rows), *_explain(config, states, given, chosen)]


def _line(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in STATES)


def _rows(states: list[State]) -> list[str | Table]:
    if not states:
        return []
    rows = [
        (s.name, s.cell.experiment, s.cell.arm, s.cell.spec.slug(), s.cell.seed, s.tries, s.why)
        for s in states[:MOST_ROWS]
    ]
    table = Table(("state", "experiment", "arm", "run", "seed", "tries", "why"), rows)
    return [table, f"... and {len(states) - MOST_ROWS} more"] if len(states) > MOST_ROWS else [table]


def _explain(config: Config, states: list[State], given: str, chosen: str) -> list[str]:
    """Return what to do about collapsed, failed and missing runs, with the last lines of their logs."""
    failed = [s for s in states if s.name == "failed" and s.said]
    todo = [s.cell for s in states if s.name in LEFT]
    untried = [s.cell for s in states if s.name in LEFT and not s.tries]
    parts = [COLLAPSED] if any(s.name == "collapsed" for s in states) else []
    parts += [f"{s.cell.spec.slug()} seed {s.cell.seed}, {s.why}:\n{_last_lines(s.said)}" for s in failed[:MOST_LOGS]]
    parts += _absent_data(config, todo) + _never_begun(config, untried)
    return [*parts, _retry(config, todo, given, chosen)] if todo else parts


def _absent_data(config: Config, todo: list[Cell]) -> list[str]:
    """Quote the logs of data sets that could not be loaded; the runs that need them were never started."""
    out = []
    for name in dict.fromkeys(c.spec.data for c in todo):
        log = config.results / "logs" / f"data-{name}.log"
        if log.exists() and not (config.results / "data" / f"{name}.json").exists():
            out.append(f"data set {name}, {log}:\n{_last_lines(log.read_text(errors='replace'))}")
    return out


def _never_begun(config: Config, todo: list[Cell]) -> list[str]:
    """Quote the logs of jobs that ended before their first run started, because of a kill or invalid input."""
    out, logs = list[str](), config.results / "logs"
    if not logs.exists():
        return out
    keys = {(c.experiment, c.key) for c in todo}
    for e in dict.fromkeys(c.experiment for c in todo):
        for job in config.experiment(e).jobs():
            log = logs / f"{job.name}.log"
            if not log.exists() or not any((e, c.key) in keys for c in job.cells):
                continue
            text = log.read_text(errors="replace")
            if not text.strip():  # look into SLURM's own log, which is named after the SLURM job number
                newest = max(logs.glob(f"slurm/*/{job.name}/*.log"), key=lambda p: p.stat().st_mtime, default=None)
                word, line = attempts.slurm(newest.read_text(errors="replace")) if newest else ("", "")
                text = f"{word}: {line}" if word else f"it ended without a message{f', see {newest}' if newest else ''}"
            out.append(f"job {job.name}, {log}:\n{_last_lines(text)}")
    return out[:MOST_LOGS]


def _last_lines(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-LAST_LINES:])


def _retry(config: Config, todo: Iterable[Cell], given: str, chosen: str) -> str:
    """Return the commands that execute only these runs: one for each spec, for each job, or for each experiment."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for c in todo:
        seeds.setdefault((c.experiment, c.spec.digest()), []).append(c.seed)
    names = list(dict.fromkeys(name for name, _ in seeds))
    if len(names) > MOST_COMMANDS:
        those = textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ")
        return f"`crbg run NAME{chosen}{given}` executes the unfinished runs of one of these experiments:\n{those}"
    if len(seeds) <= 3:
        lines = [f"{e} --where digest={d} --seeds {' '.join(map(str, s))}" for (e, d), s in seeds.items()]
    else:
        jobs = [j for name in names for j in config.experiment(name).jobs()]
        mine = [j for j in jobs if any(c.seed in seeds.get((j.experiment, c.spec.digest()), ()) for c in j.cells)]
        lines = [f"{j.experiment} --job {j.name}" for j in mine]
        # A job may also contain runs that were not selected.
        lines = [name + chosen for name in names] if chosen or len(lines) > MOST_COMMANDS else lines
    return "To execute only the unfinished runs:\n" + "\n".join(f"  crbg run {line}{given}" for line in lines)
