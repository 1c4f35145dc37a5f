"""Methods by name, and their options."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError, suggest
from crbg.search import limits

if TYPE_CHECKING:
    pass


def names() -> list[str]:
    """List the methods."""
    others = ("contract", "registry")
    folders = importlib.import_module("crbg.methods").__path__
    return sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_") and m.name not in others)


@functools.cache
def get(name: str) -> ModuleType:
    """Import a method by name."""
    if name not in names():
        raise CrbgError(f"unknown method {name!r}: {suggest(name, names())}")
    return importlib.import_module(f"crbg.methods.{name}")


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Types of a dataclass's fields; reading them is slow and they never change."""
    return typing.get_type_hints(kind)


def options(name: str, values: Mapping[str, Any]) -> Any:
    """Build a method's `Options` from plain values.

    Raises:
        CrbgError: names all unknown options and wrong types, or else all values outside their limits.
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
    """Yield what is wrong between a method's options and the density that is asked for."""
    method = get(name)
    needs = getattr(method, "NEEDS_DENSITY", None)
    if needs and density is None:
        yield f"{name} needs a density above 0: it keeps a share that you choose"
    if needs is False and density is not None:
        yield f"{name} finds its own sparsity; leave density out"
    if check := getattr(method, "conflicts", None):
        yield from check(chosen, density)


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value from a configuration file has the type a dataclass field asks for."""
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    if isinstance(value, str) and float in kinds and str not in kinds:  # YAML 1.1 takes 1e-2, without a point, for text
        with contextlib.suppress(ValueError):
            return math.isfinite(float(value))
    return any(isinstance(value, k) for k in kinds if isinstance(k, type))


def coerce(value: Any, hint: Any) -> Any:
    """Turn 1 and "1e0" into 1.0 where a float is asked for, so that all mean one run."""
    kinds = typing.get_args(hint) or (hint,)
    text = isinstance(value, str) and str not in kinds
    return (
        float(value) if (text or isinstance(value, int)) and not isinstance(value, bool) and float in kinds else value
    )


def work(name: str, chosen: Any, density: float | None, epochs: int) -> float:
    """Count the epochs of training that a run costs in all: those asked for, where a method does not say otherwise."""
    count = getattr(get(name), "work", None)
    return float(count(chosen, density, epochs)) if count else float(epochs)


def differing(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults; only these enter a digest."""
    return {
        f.name: getattr(options, f.name) for f in dataclasses.fields(options) if getattr(options, f.name) != f.default
    }
