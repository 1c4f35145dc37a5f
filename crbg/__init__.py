"""Find strong lottery tickets with continuously relaxed Bernoulli gates, and compare them with other methods.

Public names are imported on first use, so that planning a workflow does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_NAMES = {  # public names, by the module that defines them
    "api": ("find_ticket",),
    "errors": ("CrbgError",),
    "gates.attach": ("attach", "attached_gates", "bake", "bypass", "detach", "sampling", "weights"),
    "gates.base": ("Fixed", "Gate"),
    "gates.gaussian": ("Gaussian", "Units"),
    "gates.layers": ("register_gated",),
    "gates.scores": ("TopK",),
    "masks.mask": ("Mask",),
    "masks.select": ("keep_count", "layer_counts", "select"),
    "methods": ("SearchResult", "SearchTask"),
    "models.initial_weights": ("initialise",),
    "runs.artifacts": ("rebuild",),
    "ticket": ("Ticket",),
    "training.hooks": ("SearchHook",),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_MODULE]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'crbg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crbg.{_MODULE[name]}"), name)
