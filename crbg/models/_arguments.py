"""Names and arguments of models, parsed from source code, so that planning can check them without torch or timm."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crbg.errors import suggest

# timm registers a model by decorating a function of that name, or by a key in a table of deprecated names.
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_DEPRECATED = re.compile(r"register_model_deprecations\(\s*__name__,\s*\{(.*?)\}\s*\)", re.DOTALL)
FROM_DATA = {"in_chans", "num_classes", "img_size"}  # set by crbg.models.timm


def problems(source: Path, name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield one message for each invalid argument of a model whose `build` function is defined in the file `source`.

    For timm models, the name is checked too. Errors that cannot be seen in the source code are left to the constructor.
    """
    known, open_end = _parameters(source)
    if name.startswith("timm:"):
        plain = name.removeprefix("timm:").split(".")[0]
        names = timm_models()
        if not names:
            return
        if plain not in names:
            yield f"timm has no model {plain!r}: {suggest(plain, names)}"
            return
        open_end = False
        if set(arguments) - known:  # timm's source is parsed only for arguments that `build` does not define
            known |= _timm_parameters(names[plain])
    if open_end:
        return
    for key in arguments:
        if key in FROM_DATA and name.startswith("timm:"):
            yield f"model_args.{key} is set from the data; leave it out (`size` enlarges the images)"
        elif key not in known:
            yield f"model {name!r} has no argument {key!r}: {suggest(key, known - FROM_DATA)}"


def defines(source: Path, function: str) -> bool:
    """Return whether a file defines a function at its top level."""
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in _tree(source).body)


def constant(source: Path, name: str, default: Any) -> Any:
    """Return the value of a constant that a file defines at its top level, or `default`."""
    for node in _tree(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    return default


@functools.cache
def _parameters(source: Path) -> tuple[frozenset[str], bool]:
    """Return the arguments of `build` that follow name, shape and classes, and whether it also accepts any others."""
    for node in _tree(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "build":
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)][3:]
            return frozenset((*names, *(a.arg for a in node.args.kwonlyargs))), node.args.kwarg is not None
    return frozenset(), True


@functools.cache
def timm_models() -> Mapping[str, Path]:
    """Map each timm model to the file that registers it; the mapping is empty if timm is not installed."""
    folder = _timm_folder()
    out: dict[str, Path] = {}
    for path in sorted(folder.glob("*.py")) if folder else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [*_REGISTERED.findall(text)]
        for table in _DEPRECATED.findall(text):
            found += re.findall(r"['\"](\w+)['\"]\s*:", table)
        out |= dict.fromkeys(found, path)
    return out


@functools.cache
def _timm_parameters(path: Path) -> frozenset[str]:
    """Collect the arguments of all functions and constructors in a timm file and in the timm files that it imports.

    This is a superset of one model's arguments: a wrong name is detected unless a related model has an argument of that
    name.
    """
    seen: set[Path] = set()
    todo, out = [path, path.with_name("_builder.py")], {"drop_rate"}
    while todo:
        current = todo.pop()
        if current in seen or not current.exists():
            continue
        seen.add(current)
        for node in ast.walk(_tree(current)):
            if isinstance(node, ast.FunctionDef):
                out |= {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.split(".")[-1].startswith("_"):
                todo.append(path.with_name(f"{node.module.split('.')[-1]}.py"))
    return frozenset(out - {"self", "cls", "x", "pretrained"})


def _timm_folder() -> Path | None:
    found = importlib.util.find_spec("timm")
    return Path(found.origin).parent / "models" if found and found.origin else None


@functools.cache
def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))
