"""Limits on the options of methods: declared together with the option, and checked before any run starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from crbg.errors import suggest

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits on an option: bounds of a number, a set of allowed names, or a function that checks the value.

    `check` returns None if a value is allowed, and otherwise a text that says why not.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: Collection[str] | None = None
    check: Callable[[Any], str | None] | None = None

    def problem(self, value: Any) -> str | None:
        """Return why a value is not allowed, or None if it is allowed."""
        if self.choices is not None and value not in self.choices:
            return f"is unknown: {suggest(str(value), self.choices)}"
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:g}"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:g}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most:g}"
        if self.below is not None and not value < self.below:
            return f"must be below {self.below:g}"
        return self.check(value) if self.check else None


def option(default: T, **limits: Any) -> T:
    """Declare an option with its default and its `Limits`. Limits do not affect the digest of a run."""
    return field(default=default, metadata={"limits": Limits(**limits)})


def problems(method: str, chosen: Any) -> Iterator[str]:
    """Yield an error message for each method option whose value is not allowed."""
    for f in fields(chosen):
        limits, value = f.metadata.get("limits"), getattr(chosen, f.name)
        if limits and (text := limits.problem(value)):
            yield f"{method}.{f.name} = {value!r} {text}"


def share(default: float) -> float:
    """Declare an option with values in [0, 1]."""
    return option(default, least=0, most=1)
