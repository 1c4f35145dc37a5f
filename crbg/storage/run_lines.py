"""JSON-lines files with one line per run, indexed by digest and seed. Does not import torch.

A line is compact JSON that starts with its key, `{"digest":"...","seed":0,`. Lines are sorted by key, and a line is
parsed only when its run is needed. Files are always rewritten completely; unchanged lines stay byte-identical.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crbg.errors import CrbgError
from crbg.storage.atomic import LARGEST_JSON, cannot_write, no_constant, write_bytes
from crbg.storage.lock import FileLock, Timeout

PATIENCE = 60.0  # maximum number of seconds to wait for another writer
RESTORE = "restore the line from version control"

Key = tuple[str, int]  # digest of the spec, and seed
_START = re.compile(rb'\{"digest":"([^"\\]+)","seed":(-?[0-9]+),')


@dataclass(frozen=True)
class Line:
    """One line of a file: the path, the line number (counted from 1) and the bytes."""

    path: Path
    number: int
    raw: bytes

    @property
    def place(self) -> str:
        """File and line number, for error messages."""
        return f"{self.path}, line {self.number}"

    def parse(self) -> dict[str, Any]:
        """Parse the line and return its run.

        Raises:
            CrbgError: the line is damaged; the message names the file and the line.
        """
        if len(self.raw) > LARGEST_JSON:
            raise CrbgError(f"{self.place} is too large for a record: {len(self.raw)} bytes; {RESTORE}")
        try:
            return dict(json.loads(self.raw, parse_constant=no_constant))
        except (ValueError, RecursionError) as error:
            raise CrbgError(f"{self.place} is not a recorded run: {error}; {RESTORE}") from None


def lines(path: Path) -> Mapping[Key, Line]:
    """Return the lines of a file, keyed by digest and seed (empty if there is no file). Cached until the file changes.

    Raises:
        CrbgError: a line has no key, is truncated, or repeats the key of another line; the message names the line.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CrbgError(f"cannot read {path}: {error.strerror}") from None
    return _lines(path.absolute(), path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=256)
def _lines(absolute: Path, path: Path, size: int, changed: int, inode: int) -> Mapping[Key, Line]:
    try:
        body = absolute.read_bytes()
    except OSError as error:
        raise CrbgError(f"cannot read {path}: {error.strerror}") from None
    out: dict[Key, Line] = {}
    for number, raw in enumerate(body.removesuffix(b"\n").split(b"\n") if body else [], 1):
        line, start = Line(path, number, raw), _START.match(raw)
        if start is None or not raw.endswith(b"}"):
            raise CrbgError(f"{line.place} is not a recorded run; {RESTORE}")
        key = start[1].decode(errors="replace"), int(start[2])
        if key in out:
            raise CrbgError(f"{line.place} has the same digest and seed as line {out[key].number}; remove one of them")
        out[key] = line
    return out


def encode(key: Key, parts: Mapping[str, Any]) -> bytes:
    """Encode a run as a line: the key, then the fields in `parts` in their given order."""
    whole = {"digest": key[0], "seed": key[1], **parts}
    return ("{" + ",".join(f"{_compact(name)}:{_compact(value)}" for name, value in whole.items()) + "}").encode()


def put(path: Path, runs: Mapping[Key, Mapping[str, Any]]) -> None:
    """Add or replace the lines of `runs`; all other lines stay byte-identical.

    The caller must hold the folder's lock (`writing`).
    """
    if runs:
        raws = {key: line.raw for key, line in lines(path).items()}
        raws |= {key: encode(key, parts) for key, parts in runs.items()}
        write_bytes(path, b"".join(raws[key] + b"\n" for key in sorted(raws)))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside the block, hold the lock on the files in a folder; other writers wait.

    Raises:
        CrbgError: another process held the lock for more than `PATIENCE` seconds.
        WriteError: the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise CrbgError(
            f"another process has been writing in {folder} for {PATIENCE:.0f} seconds; try again when it has finished"
        ) from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
