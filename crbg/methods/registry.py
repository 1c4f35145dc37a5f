"""Registry of methods: names, modules and options."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from crbg.errors import CrbgError, suggest
from crbg.methods.contract import UNSTATED
from crbg.search import limits

if TYPE_CHECKING:
    from crbg.methods.contract import Method, Traits

NOT_METHODS = ("contract", "registry")  # modules of the package that are not methods


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    modules = (m.name for m in pkgutil.iter_modules(importlib.import_module("crbg.methods").__path__))
    return sorted(name for name in modules if not name.startswith("_") and name not in NOT_METHODS)


@functools.cache
def get(name: str) -> Method:
    """Import a method by name.

    Raises:
        CrbgError: there is no such method.
    """
    if name not in names():
        raise CrbgError(f"unknown method {name!r}: {suggest(name, names())}")
    return cast("Method", importlib.import_module(f"crbg.methods.{name}"))


def traits(name: str) -> Traits:
    """Return the traits of a method, `UNSTATED` if it defines none."""
    return cast("Traits", getattr(get(name), "TRAITS", UNSTATED))


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields. Cached, since resolving them is slow."""
    return typing.get_type_hints(kind)


def options(name: str, values: Mapping[str, Any]) -> Any:
    """Build a method's `Options` from plain values.

    Raises:
        CrbgError: an option is unknown, has the wrong type or is out of range. The message names all unknown options
            and wrong types or, if there are none, all values that are out of range.
    """
    kind = get(name).Options
    types, problems = hints(kind), []
    for key, value in values.items():
        if key not in types:
            problems.append(f"{name} has no option {key!r}: {suggest(key, types)}")
        elif not fits(value, types[key]):
            problems.append(
                f"{name}.{key} = {value!r} is {type(value).__name__}, not {getattr(types[key], '__name__', types[key])}"
            )
    if problems:
        raise CrbgError("; ".join(problems))
    made = kind(**{k: coerce(v, types[k]) for k, v in values.items()})
    if problems := list(limits.problems(name, made)):
        raise CrbgError("; ".join(problems))
    return made


def conflicts(name: str, chosen: Any, density: float | None) -> Iterator[str]:
    """Yield one message for each conflict between a method's options and the requested density."""
    method = get(name)
    needs = getattr(method, "NEEDS_DENSITY", None)
    if needs and density is None:
        yield f"{name} needs a density above 0, the fraction of weights to keep; set `density`"
    if needs is False and density is not None:
        yield f"{name} determines the density itself; leave `density` out"
    if check := getattr(method, "conflicts", None):
        yield from check(chosen, density)


def check_outputs(name: str, chosen: Any, outputs: Any) -> None:
    """Check that a method can work with the outputs of a model, if it defines `check_outputs`.

    Args:
        name: Name of the method.
        chosen: The method's options.
        outputs: Outputs of the model for one batch; None if the user's function `forward` returns the loss itself.

    Raises:
        CrbgError: the method needs other outputs.
    """
    if check := getattr(get(name), "check_outputs", None):
        check(chosen, outputs)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value from a configuration file has the type of a dataclass field."""
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    if isinstance(value, str) and float in kinds and str not in kinds:  # YAML 1.1 parses 1e-2 (no point) as a string
        with contextlib.suppress(ValueError):
            return math.isfinite(float(value))
    return any(isinstance(value, k) for k in kinds if isinstance(k, type))


def coerce(value: Any, hint: Any) -> Any:
    """Convert 1 and "1e0" to 1.0 if the field is a float, so that all three give the same digest."""
    kinds = typing.get_args(hint) or (hint,)
    text = isinstance(value, str) and str not in kinds
    return (
        float(value) if (text or isinstance(value, int)) and not isinstance(value, bool) and float in kinds else value
    )


def work(name: str, chosen: Any, density: float | None, epochs: int) -> float:
    """Return the total number of training epochs of a run: `epochs`, unless the method defines `work`."""
    count = getattr(get(name), "work", None)
    return float(count(chosen, density, epochs)) if count else float(epochs)


def differing(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults; only these are hashed into a run's digest."""
    return {
        f.name: getattr(options, f.name) for f in dataclasses.fields(options) if getattr(options, f.name) != f.default
    }
