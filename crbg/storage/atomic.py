"""Atomic file writes, and JSON files with checks of size and content. Does not import torch."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from crbg.errors import CrbgError, WriteError

LARGEST_JSON = 64 * 2**20  # bytes
OTHER_FOLDER = "choose another folder (for runs: `--set results=...`)"
FULL = 16 * 2**20  # bytes; a write that fails with less free space than this is reported as a full disk


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the complete old content or the complete new content.

    Raises:
        WriteError: the disk is full, or the folder is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: Exception) -> WriteError:
    """Return an error that states which file could not be written, why, and how to fix it."""
    if isinstance(error, IsADirectoryError):
        return WriteError(f"cannot write {path}: it is a folder; add the name of a file")
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((p for p in path.parents if p.is_file()), path.parent)
        return WriteError(f"cannot write {path}: {file} is a file; {OTHER_FOLDER}")
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    with suppress(OSError):  # libraries report a full disk with different messages
        if shutil.disk_usage(path.parent).free < FULL:
            why = os.strerror(errno.ENOSPC)
    return WriteError(f"cannot write {path}: {why}; free some space there, or {OTHER_FOLDER}")


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON atomically: sorted keys, the shortest representation of each number, no NaN."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, kind: str = "record") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        kind: Kind of file (for example "record"), for error messages.

    Raises:
        CrbgError: the file is missing, too large, nested too deeply, damaged, or not a JSON object.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CrbgError(f"{path} is too large for a {kind}: {path.stat().st_size} bytes")
        value = json.loads(path.read_bytes(), parse_constant=no_constant)
    except OSError as error:
        raise CrbgError(f"cannot read the {kind} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CrbgError):
            raise
        raise CrbgError(f"{path} is not a {kind}: {error}; delete it and run the cell again") from None
    if not isinstance(value, dict):
        raise CrbgError(f"{path} is not a {kind}: expected a JSON object, found {type(value).__name__}")
    return value


def finite(value: float, digits: int = 10) -> float | None:
    """Round a number for a record to `digits` decimal places; return None if it is not finite."""
    return round(float(value), digits) if math.isfinite(value) else None


def no_constant(name: str) -> None:
    """Raise for NaN and infinities, which are not valid JSON; used as `parse_constant` of `json.loads`."""
    raise ValueError(f"{name} is not a valid JSON number")
