"""Exceptions and warnings of the package, and the parts that their messages share."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_INSIDE = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


class CrbgError(ValueError):
    """An error that the user can fix; the message states what is wrong, where, and how to fix it."""


class WriteError(CrbgError):
    """A file cannot be written because the disk is full or the folder is not writable; a later attempt may succeed."""


class GpuFullError(CrbgError):
    """The GPU has too little memory; the message states which batch size would fit."""


def suggest(name: str, valid: Iterable[str], cutoff: float = 0.4) -> str:
    """Return a hint for a misspelled name: the closest valid name, and all valid names if there are at most 40.

    A name is close if its similarity, a number between 0 and 1, is at least `cutoff`; see `difflib`.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return hint + ("choose from: " + ", ".join(names) if len(names) <= 40 else f"{len(names)} names are known")


def few(names: Sequence[Any], most: int = 5) -> str:
    """Return the first `most` names and the number of the others, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def reason(error: Exception, limit: int | None = 200) -> str:
    """Return the type and the text of an error on one line; the text is cut to `limit` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}"


def innermost(error: BaseException) -> Exception:
    """Return the first cause of an error; libraries wrap it in errors that say only where it happened."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def warn(message: str) -> None:
    """Warn, with the position of the call that entered this package, which may be many frames above."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
