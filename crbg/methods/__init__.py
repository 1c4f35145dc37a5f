"""Methods that find tickets (sparse subnetworks): one module each, registered under its file name.

A module defines `VERSION`, `TRAITS` (its row in comparisons of methods), a frozen dataclass `Options` with the method's
settings, and `find(model, task, options) -> SearchResult`; `crbg.methods.contract.Method` declares these. `VERSION` and
the options are hashed into the digest of a run. Once a method has recorded runs, its `VERSION` and defaults must
therefore never change. The planner imports methods to read their options, so they import torch inside functions only.
"""

from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.methods.registry import (
    check_outputs,
    coerce,
    conflicts,
    differing,
    fits,
    get,
    hints,
    names,
    options,
    traits,
    work,
)

__all__ = [
    "SearchResult",
    "SearchTask",
    "Traits",
    "check_outputs",
    "coerce",
    "conflicts",
    "differing",
    "fits",
    "get",
    "hints",
    "names",
    "options",
    "traits",
    "work",
]
