"""Methods that find tickets: one module each, registered by its file name.

A module defines `VERSION`, `TRAITS` for the comparison of methods, a frozen dataclass `Options` whose fields are the
method's settings, and `find(model, task, options) -> SearchResult`; `crbg.methods.contract.Method` declares these.
VERSION and the options enter the digest of a run, so for a method that has records VERSION and the defaults never
change. The planner imports methods to read their options; therefore they import torch inside functions.
"""

from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.methods.registry import coerce, conflicts, differing, fits, get, hints, names, options, work

__all__ = [
    "SearchResult",
    "SearchTask",
    "Traits",
    "coerce",
    "conflicts",
    "differing",
    "fits",
    "get",
    "hints",
    "names",
    "options",
    "work",
]
