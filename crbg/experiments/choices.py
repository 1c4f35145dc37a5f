"""Read paper/selected.yaml, the settings chosen by the selection rule. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crbg.errors import CrbgError
from crbg.experiments.config_files import expand

COMMITTED = Path("paper/selected.yaml")  # chosen settings, and the specs that may be evaluated on the test set


def choices(paper: Path) -> Path:
    """Return the file of chosen settings in a paper folder, or the committed file if the folder has none."""
    own = paper / COMMITTED.name
    return own if own.exists() else COMMITTED


def read_selected(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Read a file of chosen settings: experiment -> arm -> [{densities, set, ...}]; empty if there is no file."""
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
