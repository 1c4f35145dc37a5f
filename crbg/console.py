"""Tables and progress: rendered by rich on a terminal, and as plain text everywhere else.

Output is plain text if it goes to a log or a pipe, if `NO_COLOR` or `CI` is set, or if rich is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID

_NUMBER = re.compile(r"-?[\d.,]*")
_STYLES = {"PASS": "green", "FAIL": "bold red", "failed": "bold red", "running": "cyan", "paused": "yellow"}


def decorated() -> bool:
    """Return whether to render with rich: stdout and stderr are both terminals, and no setting requests plain text."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb"
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    return terminal and not plain and importlib.util.find_spec("rich") is not None


@dataclass(frozen=True)
class Table:
    """A header, rows, and optionally a row of totals. Columns that contain only numbers are right-aligned."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    total: Sequence[object] = ()

    def body(self) -> list[list[str]]:
        """Return all rows as strings, without line breaks inside cells."""
        rows = [*self.rows, *([self.total] if self.total else [])]
        return [[" ".join(str(cell).split()) for cell in row] for row in rows]

    def right(self) -> list[bool]:
        """Return, for each column, whether it contains only numbers."""
        body = self.body()
        return [all(_NUMBER.fullmatch(row[i]) for row in body) for i in range(len(self.head))]

    def text(self) -> str:
        """Format the table as plain text."""
        body, right = self.body(), self.right()
        widths = [max(len(row[i]) for row in [self.head, *body]) for i in range(len(self.head))]
        lines = [self.head, ["-" * width for width in widths], *body]
        if self.total:
            lines.insert(-1, lines[1])
        return "\n".join(
            "  ".join(
                cell.rjust(width) if r else cell.ljust(width)
                for cell, width, r in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        )

    def markdown(self) -> str:
        """Format the table as Markdown."""
        lines = [self.head, ["--:" if r else "---" for r in self.right()], *self.body()]
        return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Render the table with rich; on a narrow terminal, long columns are wrapped and short ones are not."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        out, body = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False), self.body()
        widths = [max(len(row[i]) for row in [self.head, *body]) for i in range(len(self.head))]
        for i, (name, right) in enumerate(zip(self.head, self.right(), strict=True)):
            shorter = sum(width for width in widths if width <= widths[i])
            whole = shorter <= 0.6 * options.max_width
            out.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=whole)
        for i, row in enumerate(body):
            last = bool(self.total) and i == len(body) - 1
            if last:
                out.add_section()
            out.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row), style="bold" if last else "")
        yield out


def show(*parts: str | Table) -> None:
    """Print paragraphs and tables, separated by empty lines."""
    if not decorated():
        print("\n\n".join(part if isinstance(part, str) else part.text() for part in parts), flush=True)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for i, part in enumerate(parts):
        if i:
            console.print()
        # Users copy commands from this text, so rich must neither interpret markup nor insert line breaks.
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


class Progress:
    """Progress of several runs: a bar with the remaining time on a terminal, otherwise one line per `every` seconds."""

    def __init__(self, runs: int, every: float = 30.0) -> None:
        self.runs, self.every, self.done = runs, every, 0
        self.last = self.started = time.monotonic()
        self.bar: Any = None
        if decorated():
            from rich import progress

            self.bar = progress.Progress(
                progress.BarColumn(),
                progress.TextColumn("{task.completed:.2f} of {task.total:.0f} runs"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[left]}"),
                refresh_per_second=2,
            )
            self.task: TaskID = self.bar.add_task("", total=float(runs), left="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, done: int, total: int) -> None:
        """Report that the current run has completed `done` of its `total` steps."""
        now, share = time.monotonic(), (self.done + done / total) / self.runs
        left = f"about {duration((now - self.started) * (1 / share - 1))} left" if share else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done + done / total, left=left)
        elif share and now - self.last >= self.every:
            self.last = now
            print(f"{share:6.1%} of {self.runs} runs, {left}", flush=True)

    def finish(self, text: str = "") -> None:
        """Report the end of the current run, and print the line `text` unless it is empty."""
        self.done += 1
        if self.bar is not None or not text:
            self.step(0, 1)
        if text:
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, depending on its length."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
