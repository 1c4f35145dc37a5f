"""What became of every run: done, failed and why, running and where, missing; and the commands that go on.

Imports no torch.
"""

from __future__ import annotations

from typing import Any

from crbg.experiments import attempts, record_store
from crbg.experiments.config import Cell, Config
from crbg.storage import lock

MOST_ROWS = 40
LAST_WORDS = 5  # lines of a log that are quoted


def table(config: Config, cells: list[Cell], given: str = "") -> str:
    """Tabulate every distinct run that is not simply done: its state, how often it was tried, and why.

    The last words of those that failed follow, and the commands that go on with just these; `given` is appended to
    them, so that they see the same configuration.
    """
    counts = dict.fromkeys(("done", "collapsed", "running", "failed", "paused", "missing"), 0)
    rows, words, todo, untried = list[list[Any]](), list[str](), list[Cell](), list[Cell]()
    logs = config.results / "logs"
    for c in {c.key: c for c in cells}.values():
        where, found = record_store.run_folder(config, c.spec, c.seed), record_store.find(config, c.spec, c.seed)
        if found and found["record"]["status"] == "ok":
            counts["done"] += 1
            continue
        tries = attempts.read(where)
        why, said = attempts.reason(tries, logs)
        if found:
            state, why = "collapsed", found["record"].get("reason", "")
        elif by := lock.held(where):
            state, why = "running", by
        elif why:
            state = "paused" if why == attempts.PAUSED else "failed"
        else:
            state = "missing"
        counts[state] += 1
        rows.append([state, c.experiment, c.arm, c.spec.slug(), c.seed, len(tries), why])
        if state in ("failed", "paused", "missing"):
            todo.append(c)
            untried += [] if tries else [c]
        if state == "failed" and said:
            words.append(f"{c.spec.slug()} seed {c.seed}, {why}:\n{_last_words(said)}")
    from tabulate import tabulate

    text = [", ".join(f"{n} {state}" for state, n in counts.items())]
    rows.sort(key=lambda r: r[0] == "missing")  # what happened before what did not
    if rows:
        head = ["state", "experiment", "arm", "run", "seed", "tries", "why"]
        text.append(
            tabulate(rows[:MOST_ROWS], head)
            + (f"\n... and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else "")
        )
    text += words[:10] + _complaints(config, todo) + _never_begun(config, untried)
    if todo:
        text.append("To go on with just these:\n" + "\n".join(f"  {line}" for line in _retry(config, todo, given)))
    return "\n\n".join(text)


def _complaints(config: Config, todo: list[Cell]) -> list[str]:
    """Quote the logs of data sets that could not be had: runs that need them were never started."""
    out = []
    for name in dict.fromkeys(c.spec.data for c in todo):
        log = config.results / "logs" / f"data-{name}.log"
        if log.exists() and not (config.results / "data" / f"{name}.json").exists():
            out.append(f"data set {name}, {log}:\n{_last_words(log.read_text(errors='replace'))}")
    return out


def _never_begun(config: Config, todo: list[Cell]) -> list[str]:
    """Quote the logs of jobs that ended before their first run began: killed while they loaded, or refused what they were given."""
    out, keys, logs = [], {(c.experiment, c.key) for c in todo}, config.results / "logs"
    for e in dict.fromkeys(c.experiment for c in todo):
        for job in config.experiment(e).jobs():
            log = logs / f"{job.name}.log"
            if not log.exists() or not any((e, c.key) in keys for c in job.cells):
                continue
            text = log.read_text(errors="replace")
            if not text.strip():  # SLURM's own logs are numbered by job
                newest = max(logs.glob(f"slurm/*/{job.name}/*.log"), key=lambda p: p.stat().st_mtime, default=None)
                word, line = attempts.slurm(newest.read_text(errors="replace")) if newest else ("", "")
                text = f"{word}: {line}" if word else f"it ended without a word{f', see {newest}' if newest else ''}"
            out.append(f"job {job.name}, {log}:\n{_last_words(text)}")
    return out[:10]


def _last_words(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-LAST_WORDS:])


def _retry(config: Config, todo: list[Cell], given: str) -> list[str]:
    """Write the commands that do these runs and no others, one for each spec, or for the jobs of the workflow that hold them."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for c in todo:
        seeds.setdefault((c.experiment, c.spec.digest()), []).append(c.seed)
    if len(seeds) <= 3:
        return [
            f"crbg run {e} --where digest={d} --seeds {' '.join(map(str, s))}{given}" for (e, d), s in seeds.items()
        ]
    keys = {(c.experiment, c.key) for c in todo}
    jobs = [j for name in dict.fromkeys(c.experiment for c in todo) for j in config.experiment(name).jobs()]
    mine = [j for j in jobs if any((j.experiment, c.key) in keys for c in j.cells)]
    if len(mine) > 5:
        return [f"crbg run {name}{given}" for name in dict.fromkeys(j.experiment for j in mine)]
    return [f"crbg run {j.experiment} --job {j.name}{given}" for j in mine]
