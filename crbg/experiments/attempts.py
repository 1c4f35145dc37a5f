"""The log of attempts at a run: one line when a process starts the run, one line when the attempt ends.

Lines are appended and never changed, so a kill loses nothing: an attempt without an end line was killed. This module
does not import torch.
"""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crbg.storage import lock

FILE = "attempts.jsonl"
# The possible outcomes of an attempt. After an outcome in FINAL, a retry with the same code and input would fail again.
DONE, PAUSED, MEMORY, DISK, INPUT, CODE, KILLED, FAILED, WAITED = (
    "done", "paused", "out of memory", "disk", "bad input", "code error", "killed", "failed", "waited",
)  # fmt: skip
FINAL = (INPUT, CODE)
# Text that SLURM writes into the log of a job when it ends the job, and the reason that `crbg status` shows.
_SLURM = (
    ("DUE TO TIME LIMIT", "time limit"),
    ("oom-kill", "out of memory"), ("oom_kill", "out of memory"), ("memory limit", "out of memory"),
    ("DUE TO PREEMPTION", "preempted"), ("DUE TO NODE FAILURE", "node failure"), ("CANCELLED", "cancelled"),
)  # fmt: skip


def begin(folder: Path, **about: Any) -> None:
    """Log the start of an attempt by this process; `about` adds fields to the line."""
    _append(folder, {"event": "begin", "time": _now(), **lock.me(), **about})


def end(folder: Path, outcome: str, error: BaseException | None = None) -> None:
    """Log the outcome of an attempt and, if it failed, the error message; for a code error, also its traceback."""
    line: dict[str, Any] = {"event": "end", "time": _now(), "outcome": outcome}
    if error is not None:
        line["message"] = (str(error) or type(error).__name__)[:2000]
        if outcome == CODE:
            line["traceback"] = "".join(traceback.format_exception(error))[-4000:]
    _append(folder, line)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the attempts in order, each as one mapping that merges its start line and its end line.

    Lines cut short by a kill are ignored, and so are attempts that only waited for a stage that another run computed.
    """
    out: list[dict[str, Any]] = []
    try:
        lines = (folder / FILE).read_text(errors="replace").splitlines()
    except OSError:
        return out
    for text in lines:
        try:
            line = dict(json.loads(text))
        except (ValueError, TypeError):
            continue
        if line.get("event") == "begin":
            out.append({"outcome": KILLED, **line})
        elif out:
            out[-1] |= line
    return [a for a in out if a["outcome"] != WAITED]


def last(folder: Path) -> dict[str, Any] | None:
    """Return the latest attempt, or None if there was none."""
    return next(reversed(read(folder)), None)


def reason(tries: list[dict[str, Any]], logs: Path) -> tuple[str, str]:
    """Return the outcome and the message of the last attempt; if SLURM killed its job, SLURM's reason and log line."""
    if not tries:
        return "", ""
    attempt = tries[-1]
    if attempt["outcome"] != KILLED:
        return attempt["outcome"], attempt.get("traceback") or attempt.get("message", "")
    job = attempt.get("slurm_job")
    where = f"{attempt.get('host', '?')}" + (f", SLURM job {job}" if job else "")
    for path in logs.rglob(f"{job}.log") if job else ():
        word, line = slurm(path.read_text(errors="replace"))
        if word:
            return word, line
    causes = "out of memory, over the time limit, or killed by hand"
    return KILLED, f"nothing was logged after {attempt.get('time', '?')} ({where}): {causes}"


def slurm(text: str) -> tuple[str, str]:
    """Return why SLURM ended a job, and the log line that states it; two empty strings if SLURM did not end it."""
    for mark, word in _SLURM:
        if mark in text:
            return word, " ".join(next(line for line in text.splitlines() if mark in line).split())
    return "", ""


def _append(folder: Path, line: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a") as out:
        # The newline comes first because a kill may have cut the previous line short.
        out.write("\n" + json.dumps(line, sort_keys=True))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
