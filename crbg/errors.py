"""The one exception a user's mistake raises, and the hint that names the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrbgError(ValueError):
    """A mistake that the user can mend: the message names the thing, the place and the fix."""


class WriteError(CrbgError):
    """The disk is full, or the folder may not be written: another try can help once that is mended."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is nearest to a wrong one, and list them all when they are few."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return hint + ("choose from: " + ", ".join(names) if len(names) <= 40 else f"{len(names)} names are known")


class GpuFullError(CrbgError):
    """The memory of a GPU did not suffice; the message says which batch size would."""
