"""The tables of `crbg plan`: the missing runs, and the time and disk space that they need.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

from crbg.console import Table
from crbg.experiments import estimates, record_store
from crbg.experiments.config import Cell, Config, Experiment
from crbg.experiments.experiment import Key, distinct
from crbg.experiments.record import Run

NEEDS = ("runs", "done", "missing", "CPU hours", "GPU hours", "disk MiB")
ALONE = "Hours are estimates for one process at a time on an idle machine."


@dataclass
class Need:
    """Numbers of runs, and the time and disk space that the missing ones need."""

    runs: int = 0
    done: int = 0
    missing: int = 0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    megabytes: float = 0.0

    def __add__(self, other: Need) -> Need:
        return Need(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Need)))

    def columns(self) -> tuple[str, ...]:
        """Return the values of the columns `NEEDS` as text."""
        hours = (f"{seconds / 3600:.2f}" for seconds in (self.cpu_seconds, self.gpu_seconds))
        return (*map(str, (self.runs, self.done, self.missing)), *hours, f"{self.megabytes:.0f}")


def needs(config: Config, cells: Iterable[Cell], found: Mapping[Key, Run | None]) -> Iterator[tuple[Key, Cell, Need]]:
    """Yield what each run is estimated to need. A run that several experiments share is yielded once for each of them.

    `found` is the result of `record_store.find_runs`.
    """
    by_experiment: dict[str, list[Cell]] = {}
    for c in cells:
        by_experiment.setdefault(c.experiment, []).append(c)
    for name, those in by_experiment.items():
        mine, gpu = distinct(those), estimates.on_gpu(config, config.experiment(name))
        missing = any(found[key] is None for key in mine)
        seconds = estimates.estimate_seconds(config, mine.values(), gpu, found) if missing else dict.fromkeys(mine, 0.0)
        for key, c in mine.items():
            yield key, c, _need(c, found[key] is not None, seconds[key], gpu)


def _need(cell: Cell, done: bool, seconds: float, gpu: bool) -> Need:
    if done:
        return Need(1, 1)
    megabytes = (9.0 * estimates.size(cell.spec)[0] + 2e4) / 2**20
    return Need(1, 0, 1, 0.0 if gpu else seconds, seconds if gpu else 0.0, megabytes)


def summary(config: Config, cells: list[Cell]) -> list[str | Table]:
    """Return a table of what each experiment needs, grouped by target. The total counts shared runs once."""
    rows, total = totals(config, cells)
    body = [(*place, *rows[name].columns()) for name, place in by_target(config.experiment(n) for n in rows)]
    first = "An experiment with several targets is listed under the first of them."
    more = "`crbg plan NAME` shows the arms of an experiment or the experiments of a target."
    cut = "`crbg plan NAME --minutes M` splits the missing runs into time slices of M minutes."
    head = ("target", "experiment", "role", *NEEDS)
    return [Table(head, body, ("total", "", "", *total.columns())), "\n".join((ALONE, first, more, cut))]


def table(config: Config, cells: list[Cell]) -> list[str | Table]:
    """Return a table of what each experiment needs, or each arm if all cells belong to one experiment."""
    names = list(dict.fromkeys(c.experiment for c in cells))
    one = len(names) == 1
    rows, total = totals(config, cells, lambda c: c.arm if one else c.experiment)
    body = [(name, *need.columns()) for name, need in rows.items()]
    last = (names[0] if one else "total", *total.columns())
    return [Table(("arm" if one else "experiment", *NEEDS), body, last), ALONE]


def totals(
    config: Config, cells: list[Cell], place: Callable[[Cell], str] = lambda c: c.experiment
) -> tuple[dict[str, Need], Need]:
    """Return what the cells need, by experiment or another `place`, and in total; the total counts shared runs once."""
    rows: dict[str, Need] = {}
    every: dict[Key, Need] = {}
    for key, c, need in needs(config, cells, record_store.find_runs(config, cells)):
        rows[place(c)] = rows.get(place(c), Need()) + need
        every.setdefault(key, need)
    return rows, sum(every.values(), Need())


def by_target(experiments: Iterable[Experiment]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Yield the name of each experiment and its values in the columns `target`, `experiment` and `role`.

    Experiments are grouped by their first target, and only the first row of a group names it.
    """
    groups: dict[str, list[Experiment]] = {}
    for e in experiments:
        groups.setdefault(e.targets[0] if e.targets else "none", []).append(e)
    for target, those in groups.items():
        for i, e in enumerate(those):
            yield e.name, (target if i == 0 else "", e.name, e.role)


def schedule(config: Config, cells: list[Cell], minutes: float, given: str = "") -> list[str | Table]:
    """Return a table of the time slices in which the missing runs of each arm will be executed.

    A slice is one call of `crbg run` that takes `minutes` minutes. It executes missing runs in the order of the
    configuration, and writes a checkpoint at its deadline.
    """
    names = dict.fromkeys(c.experiment for c in cells)
    gpu = {name: estimates.on_gpu(config, config.experiment(name)) for name in names}
    found = record_store.find_runs(config, cells)
    missing = {key: c for key, c in distinct(cells).items() if found[key] is None}
    if not missing:
        return ["nothing is missing"]
    seconds: dict[Key, float] = {}
    for name, on in gpu.items():
        seconds |= estimates.estimate_seconds(config, [c for c in cells if c.experiment == name], on, found)
    bound, spent = 60 * minutes - estimates.margin(minutes), 0.0
    rows = []
    for place in dict.fromkeys((c.experiment, c.arm) for c in missing.values()):
        mine = [key for key, c in missing.items() if (c.experiment, c.arm) == place]
        need = sum(seconds[key] for key in mine)
        begin, spent = int(spent / bound) + 1, spent + need
        end = max(begin, int((spent - 1) / bound) + 1)
        which = f"{begin}" if end == begin else f"{begin} to {end}"
        rows.append((*place, len(mine), "GPU" if gpu[place[0]] else "CPU", f"{need / 60:.0f}", which))
    count = math.ceil(spent / bound)
    command = f"  crbg run{given} --deadline-minutes {minutes:g}"
    text = f"{count} slices of {minutes:g} minutes. Repeat this command until its exit status is 0 instead of 75:"
    return [Table(("experiment", "arm", "runs", "on", "minutes", "slices"), rows), f"{text}\n{command}"]
