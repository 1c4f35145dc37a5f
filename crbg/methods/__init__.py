"""Methods that find tickets: one file each, found by its name.

A file holds `VERSION`, perhaps `TRAITS` for the table that compares methods, a frozen dataclass `Options` whose fields
are the method's settings, and `find(model, task, options) -> SearchResult`. VERSION and the defaults enter the digest
of a run: for a method that has records they never change. The planner reads options without running anything, so a
method file imports torch inside `find`.
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
