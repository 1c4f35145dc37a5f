"""Names of penalties, and sums of them such as "2*induce_sparse+0.5*induce_decision". Does not import torch."""

from __future__ import annotations

import math

from crbg.errors import CrbgError, suggest

PENALTIES = ("induce_sparse", "induce_decision", "decision_quad", "decision_entropy")


def parse(text: str) -> dict[str, float]:
    """Return the factor of each penalty in a sum; a name alone has the factor 1.

    Raises:
        CrbgError: a name is unknown, or a factor is not a finite number.
    """
    out: dict[str, float] = {}
    for term in text.split("+"):
        factor, star, name = (part.strip() for part in term.rpartition("*"))
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise CrbgError(f"penalty {text!r} is not of the form 'a*name+b*name'")
        if name not in PENALTIES:
            raise CrbgError(f"unknown penalty {name!r}: {suggest(name, PENALTIES)}")
        out[name] = out.get(name, 0.0) + weight
    return out
