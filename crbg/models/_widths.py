"""A check that several families of networks share."""

from __future__ import annotations

from collections.abc import Sequence

from crbg.errors import CrbgError


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Check the widths of the layers of a network.

    Raises:
        CrbgError: a width is 0.
    """
    if min(widths) < 1:
        raise CrbgError(zero_width(name))


def zero_width(name: str) -> str:
    """Return the message for a network with a layer of width 0."""
    return f"model {name!r} has a layer of width 0; every width must be at least 1"
