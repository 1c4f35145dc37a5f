"""Entries of paper/claims.yaml as frozen, typed objects, and one readable error for a malformed entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from crbg.errors import CrbgError, suggest


class Declared(BaseModel):
    """An entry with typed fields. An unknown field is an error, so a misspelt name is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


D = TypeVar("D", bound=Declared)


def parse(kind: type[D], raw: object, place: str) -> D:
    """Validate an entry and convert it to an object.

    Raises:
        CrbgError: names the place, and every field that is missing, unknown or of the wrong type.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_problem(kind, dict(e)) for e in error.errors())
        raise CrbgError(f"{place}: {problems}") from None


def fields_of(raw: object, place: str) -> dict[str, Any]:
    """Return the fields of an entry.

    Raises:
        CrbgError: the entry is not a mapping.
    """
    if not isinstance(raw, Mapping):
        raise CrbgError(f"{place}: expected a mapping of fields, found {raw!r:.80}")
    return {str(name): value for name, value in raw.items()}


def _problem(kind: type[Declared], error: dict[str, Any]) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"field {name!r} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown field {name!r}: {suggest(name, kind.model_fields)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"field {name!r}: {message}, not {error['input']!r}" if name else message
