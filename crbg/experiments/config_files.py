"""Merge configuration files into one mapping of plain values, which `config.check` checks afterwards."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from crbg.errors import CrbgError, suggest

# Top-level keys with a scalar value, which can be set by `--set` and `snakemake --config`.
_TEXTS, _NUMBERS = (
    ("about", "results", "paper", "data_dir", "reuse", "device"),
    ("threads", "gpu_share", "save_every", "seeds_at_most", "points_at_most", "jobs_at_most"),
)
SCALARS: dict[str, type] = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, int)
RENAMED = {"scale": "override"}  # old top-level keys, and their new names


@dataclass
class Merged:
    """The merged values of all files, and the files that set each top-level key and each experiment."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    def place(self, loc: Sequence[str | int], default: str) -> str:
        """Return the files that set the key at this location, or `default` if no file did."""
        for length in (2, 1):
            if files := self.origin.get(tuple(map(str, loc[:length]))):
                return ", ".join(files)
        return default


def merge(paths: Sequence[str | Path], settings: Iterable[str] = ()) -> Merged:
    """Merge files, then `key=value` settings. Later values override earlier ones; a file overrides its includes.

    Raises:
        CrbgError: a file cannot be read, or has a duplicate or non-string key; or a setting is unknown.
    """
    merged = Merged()
    for path in paths:
        _lay_file(merged, Path(path), ())
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in SCALARS:
            raise CrbgError(f"--set {setting}: {suggest(key, SCALARS)}")
        merged.values[key] = _value(key, text, setting)
        merged.origin.pop((key,), None)
    return merged


def lay_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings recursively; lists and scalars in `over` replace those in `under`."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(out.get(key), Mapping) and isinstance(value, Mapping)
        out[key] = lay_over(out[key], value) if both else value
    return out


def expand(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"options.lr": 1} into {"options": {"lr": 1}}."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, rest = str(key).partition(".")
        out = lay_over(out, {head: {rest: value}} if rest else {key: value})
    return out


def path_of(text: str, place: str) -> str:
    """Expand `~` and environment variables in a path.

    Raises:
        CrbgError: an environment variable is not set, or the path is empty or contains a line break or a character with
            a special meaning in Snakemake.
    """
    out = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111
    if "$" in out:
        raise CrbgError(f"{place} = {text!r}: the environment variable in this path is not set")
    if not out or any(c in out for c in "{}<>\n"):
        raise CrbgError(f"{place} = {text!r}: a path must not be empty, nor contain {{ }} < > or a line break")
    return out


def _lay_file(merged: Merged, path: Path, chain: tuple[Path, ...]) -> None:
    if path.resolve() in chain:
        raise CrbgError(f"{path} includes itself: {' -> '.join(p.name for p in (*chain, path))}")
    values = load(path)
    for included in _includes(values, path):
        _lay_file(merged, included, (*chain, path.resolve()))
    if renamed := sorted(RENAMED.keys() & values.keys()):
        raise CrbgError("\n".join(f"{path}: the key {k!r} is now {RENAMED[k]!r}; rename it" for k in renamed))
    values = _name_bases(values)
    defaults, experiments = values.pop("defaults", None) or {}, values.get("experiments")
    if not isinstance(defaults, dict):
        raise CrbgError(f"{path}: defaults = {defaults!r} must be a mapping of an experiment's fields")
    known = merged.values.get("experiments") or {}
    if isinstance(experiments, dict) and isinstance(known, dict):
        values["experiments"] = {
            k: lay_over(defaults, v) if k not in known and isinstance(v, dict) else v for k, v in experiments.items()
        }
    for key, value in values.items():
        for loc in ((key,), *((key, name) for name in (value if isinstance(value, dict) else ()))):
            merged.origin.setdefault(loc, []).append(str(path))
    merged.values = lay_over(merged.values, values)


def _includes(values: dict[str, Any], path: Path) -> Iterator[Path]:
    """Yield the paths of the files that a file includes, which are given relative to the folder of that file."""
    given = values.pop("include", None) or []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CrbgError(f"{path}: include must be a file name or a list of file names, not {given!r}")
    for name in names:
        found = path.parent / path_of(name, f"{path}: include")
        if not found.exists():
            near = sorted(str(p.relative_to(path.parent)) for p in found.parent.glob("*.y*ml"))
            raise CrbgError(f"{path}: include: there is no file {name!r}: {suggest(name, near)}")
        yield found


def _name_bases(values: dict[str, Any]) -> dict[str, Any]:
    """Replace `base: NAME` and `set: NAME` by mappings that extend NAME, so that an overlay can add fields to them."""

    def body(value: Any) -> Any:
        return {"extends": value} if isinstance(value, str) else value

    def within(value: Any, change: Callable[[Any], Any]) -> Any:
        return {k: change(v) for k, v in value.items()} if isinstance(value, dict) else value

    def arm(value: Any) -> Any:
        return {k: body(v) if k == "set" else v for k, v in value.items()} if isinstance(value, dict) else value

    def experiment(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: body(v) if k == "base" else within(v, arm) if k == "arms" else v for k, v in value.items()}

    changes: dict[str, Callable[[Any], Any]] = {
        "bases": lambda v: within(v, body),
        "override": body,
        "defaults": experiment,
        "experiments": lambda v: within(v, experiment),
    }
    return {k: changes.get(k, lambda v: v)(v) for k, v in values.items()}


def _value(key: str, text: str, setting: str) -> Any:
    """Parse the value of a setting. Strings are taken literally; numbers are parsed as YAML."""
    if SCALARS[key] is str:
        return None if key == "data_dir" and text in ("", "null", "None") else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise CrbgError(f"--set {setting}: {text!r} is not valid YAML") from None


class _Loader(yaml.SafeLoader):
    """A safe loader that collects duplicate keys. PyYAML itself silently keeps the last one."""

    twice: list[str]

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in first:
                self.twice.append(f"line {line}: the key {key.value!r} is given twice, first in line {first[name]}")
            first[name] = line
        return node


def load(path: Path) -> dict[str, Any]:
    """Read one YAML file and check that all its keys are strings and unique.

    Raises:
        CrbgError: the file cannot be read, is not a YAML mapping, or has wrong keys, which the message lists.
    """
    try:
        loader = _Loader(path.read_text())
        loader.twice = []
        loaded = loader.get_single_data() or {}
    except OSError as error:
        moved = path.parent / "overlays" / path.name
        here = "; run crbg in the root of a clone, or pass --config FILE" if path == Path("config.yaml") else ""
        hint = f"; it is now {moved}" if moved.exists() else here
        raise CrbgError(f"cannot read the configuration {path}: {error.strerror}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CrbgError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise CrbgError(f"{path} must be a mapping of keys, not {type(loaded).__name__}")
    if problems := [f"{path}, {line}" for line in loader.twice] + [f"{path}: {text}" for text in _no_text(loaded, ())]:
        raise CrbgError("\n".join(problems))
    return loaded


def _no_text(value: Any, loc: tuple[str, ...]) -> Iterator[str]:
    """Yield a message for each key that is not a string. The keys of `groups` are densities and may be numbers."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _no_text(item, (*loc, str(i)))
    if not isinstance(value, dict) or (loc[-1:] == ("groups",) and loc[0] in ("experiments", "defaults")):
        return
    for key, item in value.items():
        if not isinstance(key, str):
            where = f"{'.'.join(loc)}: " if loc else ""
            why = " (YAML reads yes, no, on and off as true or false)" if isinstance(key, bool) else ""
            yield f"{where}the key {key!r} is not text{why}; put it in quotes"
        yield from _no_text(item, (*loc, str(key)))


NAME = frozenset(string.ascii_letters + string.digits + "_")
# The rules of the workflow. A target becomes a rule too, so it cannot have one of these names.
RULES = frozenset(
    "data search search_gpu search_wide search_nodes evaluate evaluate_gpu robustness selection chapter paper".split()  # noqa: SIM905
)


def wrong_name(kind: str, name: str) -> str | None:
    """Return why a name cannot be used in a file name, wildcard or rule of the workflow; None if it can be used."""
    more = frozenset("+.-*") if kind == "arm" else frozenset()
    if not name or not set(name) <= NAME | more or name[0] in ".-":
        extra = ", and + . - * (. and - not as the first character)" if more else ""
        article = "a" if kind == "target" else "an"
        return f"the name {name!r} of {article} {kind} is used in file names: use only letters, digits and _{extra}"
    if kind == "target" and (name in RULES or name[0].isdigit()):
        return (
            f"the target {name!r} has the name of a rule of the workflow, or begins with a digit; choose another name"
        )
    return None
