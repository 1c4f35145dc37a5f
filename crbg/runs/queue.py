"""Many runs in one process: one after the other, in whatever state other processes left them, until done or out of time."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from crbg.errors import CrbgError, WriteError
from crbg.experiments import attempts, estimates, record_store
from crbg.experiments.config import Cell, Config, choices
from crbg.experiments.record import Record
from crbg.storage.lock import HeldError

FAILED = 1  # exit status when runs failed
CONTINUE = 75  # when time ran out and a checkpoint was left: call it again
INTERRUPTED = 130  # after Ctrl-C, as shells have it


def bench(config: Config, cells: Iterable[Cell] = (), device: str | None = None, threads: int | None = None) -> Any:
    """Choose the device and the threads of this process; cells of an experiment that asks for a GPU need one.

    Raises:
        CrbgError: a GPU was asked for, by hand or by an experiment, and there is none.
    """
    import torch

    from crbg.runs.setup import Workspace
    from crbg.training import distributed
    from crbg.training.device import pick

    torch.set_num_threads(threads or config.threads)
    name = device or config.device
    if name == "auto" and (asking := next((c.experiment for c in cells if config.experiment(c.experiment).gpu), None)):
        if not torch.cuda.is_available():
            raise CrbgError(
                f"{asking} asks for a GPU (`gpu` in its configuration) and torch finds none; `--device cpu` runs it on the CPU"
            )
        name = "cuda"
    chosen = distributed.place(name, lambda one: pick(one, config.gpu_share))
    distributed.join(chosen)
    selected = None if config.demonstration else choices(config.paper)
    return Workspace(config.results, config.data_dir, chosen, selected=selected)


def search(bench: Any, config: Config, cells: Sequence[Cell], minutes: float) -> int:
    """Do the runs, or take part in them where another process of several leads; see `lead`."""
    from crbg.runs.execute import run_as_worker
    from crbg.training import distributed
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
    """Do the runs and return an exit status: 0, FAILED, CONTINUE or INTERRUPTED.

    A run that fails does not stop the others. One that another process holds is left until last, and then waited for.

    Raises:
        WriteError: the results' disk is full or read-only, which would stop the others too.
    """
    from crbg.runs.execute import execute
    from crbg.training import distributed
    from crbg.training.clock import Clock, OutOfTime
    from crbg.training.device import check_precision

    stop = time.monotonic() + 60 * minutes - estimates.margin(minutes)
    for precision in {c.spec.precision for c in cells}:
        check_precision(precision, bench.device)
    for name in dict.fromkeys(c.spec.data for c in cells):
        bench.data(name)  # missing data is an error before the first run, not after an hour of them
    waiting, progress, failed = deque(cells), Progress(len(cells)), 0
    held, told = 0, False  # runs seen in a row that other processes hold, and whether that was said
    with Stop() as asked:
        while waiting:
            cell = waiting.popleft()
            try:
                clock = Clock(deadline=stop, save_every=config.save_every, asked=asked, report=progress.step)
                record = execute(cell.spec, cell.seed, bench, clock)
            except HeldError as other:
                waiting.append(cell)
                held += 1
                if held >= len(waiting):
                    if not told:
                        print(f"waiting: {other}", flush=True)
                    told, held = True, 0
                    time.sleep(5)
            except OutOfTime as pause:
                print(f"{title(cell)}: {pause}; call again to go on", flush=True)
                return asked.status or CONTINUE
            except WriteError:
                raise
            except Exception as error:
                if distributed.size() > 1:
                    raise  # the others may be anywhere in their step; torchrun ends them with this process
                why = str(error) if isinstance(error, CrbgError) else traceback.format_exc()
                progress.finish(f"{title(cell)}: FAILED: {why}")
                failed, held = failed + 1, 0
            else:
                progress.finish(line(cell, record))
                held = 0
            if waiting and (asked() or time.monotonic() >= stop):
                return asked.status or CONTINUE
    if failed:
        print(f"{failed} of {len(cells)} runs failed; `crbg status` says why, and how to run them again", flush=True)
    return FAILED if failed else 0


def hopeless(config: Config, cells: Iterable[Cell]) -> dict[tuple[str, int], str]:
    """Find the runs whose last attempt ended in a way that the next one cannot mend, and say how."""
    out = {}
    for c in cells:
        last = attempts.last(record_store.run_folder(config, c.spec, c.seed))
        if last and last["outcome"] in attempts.FINAL:
            out[c.key] = f"{title(c)}: not tried again after a {last['outcome']}: {last.get('message')}"
    return out


def title(cell: Cell) -> str:
    """Name a cell in a line of a log."""
    return f"{cell.arm} {cell.spec.slug()} seed {cell.seed}"


def line(cell: Cell, record: Record, tested: float | None = None, where: str = "") -> str:
    """Say how a run came out, in a line of a log; and its test accuracy and where its record lies, for what is done already."""
    best, constant = record.accuracy(), record.controls().get("constant")
    if best is None:
        return f"{title(cell)}: {record.status}"
    text = f"{title(cell)}: validation {best:.2f} % at density {record.density:.4g}"
    if record.missed_density:
        text += ", cut to it at the end"
    if constant is not None and best <= constant:  # older records lack it
        text += ", no better than the commonest class"
    return text + (f", test {tested:.2f} %" if tested is not None else "") + (f" ({where})" if where else "")


class Stop:
    """SIGTERM and Ctrl-C end a run at its next step, with a checkpoint; a second one ends the process at once.

    `status` is 0 until then, and the exit status afterwards.
    """

    def __init__(self) -> None:
        self.status, self.before = 0, dict[int, Any]()

    def __call__(self) -> bool:
        return self.status != 0

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._asked) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: object) -> None:
        self.status = INTERRUPTED if number == signal.SIGINT else CONTINUE
        print(
            f"{signal.Signals(number).name}: stopping at the next step, with a checkpoint", file=sys.stderr, flush=True
        )
        self.__exit__()


class Progress:
    """A bar with ETA over all steps of all cells on a terminal; a plain line now and then in a log."""

    def __init__(self, cells: int, every: float = 30.0) -> None:
        self.cells, self.every, self.done, self.last, self.started = cells, every, 0, time.monotonic(), time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=float(cells),
                unit="run",
                bar_format="{l_bar}{bar}| {n:.2f}/{total:.0f} runs [{elapsed}<{remaining}]",
            )

    def step(self, done: int, total: int) -> None:
        """Note steps of the present cell."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.done + done / total - self.bar.n)
        elif now - self.last >= self.every:
            self.last = now
            share = (self.done + done / total) / self.cells
            print(
                f"{share:6.1%} of {self.cells} runs, about {_time((now - self.started) * (1 / share - 1))} left",
                flush=True,
            )

    def finish(self, text: str = "") -> None:
        """Note the end of a cell; without a text only the time left is told, as it is between steps."""
        self.done += 1
        if not text:
            self.step(0, 1)
        elif self.bar is not None:
            self.bar.update(self.done - self.bar.n)
            self.bar.write(text)
        else:
            print(text, flush=True)
        if self.bar is not None and self.done == self.cells:
            self.bar.close()


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
