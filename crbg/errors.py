"""Exceptions of the package, and suggestions of valid names for misspelled ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrbgError(ValueError):
    """An error that the user can fix; the message states what is wrong, where, and how to fix it."""


class WriteError(CrbgError):
    """A file cannot be written because the disk is full or the folder is not writable; a later attempt may succeed."""


class GpuFullError(CrbgError):
    """The GPU has too little memory; the message states which batch size would fit."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a misspelled name: the closest valid name, and all valid names if there are at most 40."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return hint + ("choose from: " + ", ".join(names) if len(names) <= 40 else f"{len(names)} names are known")
