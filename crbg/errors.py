"""The exceptions of the package, and the suggestion of a valid name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrbgError(ValueError):
    """An error that the user can fix; the message says what is wrong, where, and how to fix it."""


class WriteError(CrbgError):
    """A file cannot be written: the disk is full, or the folder is not writable. A later attempt may succeed."""


class GpuFullError(CrbgError):
    """The GPU has too little memory; the message says which batch size would fit."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a hint with the valid name nearest to a wrong one, and all valid names if they are few."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return hint + ("choose from: " + ", ".join(names) if len(names) <= 40 else f"{len(names)} names are known")
