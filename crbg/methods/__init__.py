"""Methods that find tickets, one module each; the name of the module is the name of the method.

A module defines `VERSION`, a frozen dataclass `Options` with the method's settings,
`find(model, task, options) -> SearchResult`, and optionally `TRAITS` for the table that compares methods. VERSION and
the options' defaults enter the digest of a run, so they never change for a method that has records. Planning imports
every method to check options; therefore torch is imported inside `find`.
"""

from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.methods.registry import coerce, differing, fits, get, hints, names, options, work

__all__ = [
    "SearchResult",
    "SearchTask",
    "Traits",
    "coerce",
    "differing",
    "fits",
    "get",
    "hints",
    "names",
    "options",
    "work",
]
