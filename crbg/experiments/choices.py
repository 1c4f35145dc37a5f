"""The committed choices of the selection rule: paper/selected.yaml. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crbg.errors import CrbgError
from crbg.experiments.config_files import expand

COMMITTED = Path("paper/selected.yaml")  # the choices of the selection rule, and the specs that may be evaluated


def choices(paper: Path) -> Path:
    """Return the file of choices that a paper folder uses: its own, or the committed one where it has none."""
    own = paper / COMMITTED.name
    return own if own.exists() else COMMITTED


def read_selected(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Read the committed choices of the selection rule: experiment -> arm -> [{densities, set, ...}]."""
    if not path.exists():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text()) or {}
        if not isinstance(loaded, dict):
            raise CrbgError(f"{path} must be a mapping; write it again with `crbg select`")
        for arms in (arms for name, arms in loaded.items() if name != "evaluate"):
            for choice in (choice for choices in arms.values() for choice in choices):
                expand(choice["set"])
                list(choice["densities"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise CrbgError(
            f"{path} is damaged ({type(error).__name__}: {error}); write it again with `crbg select`"
        ) from None
    return dict(loaded)
