"""Strong lottery tickets by continuously relaxed Bernoulli gates, beside every baseline, measured and judged.

The public names are loaded on first use, so that planning a workflow does not pay for importing torch. Functions that
bear the name of their module stay there: `crbg.gates.attach.attach`, `crbg.masks.select.select`,
`crbg.training.loop.fit`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "Mask": "masks.mask", "keep_count": "masks.select", "layer_counts": "masks.select",
    "Gate": "gates.base", "Fixed": "gates.base", "Gaussian": "gates.gaussian", "Units": "gates.gaussian", "TopK": "gates.scores",
    "bake": "gates.attach", "detach": "gates.attach", "bypass": "gates.attach", "sampling": "gates.attach", "weights": "gates.attach",
    "SearchHook": "training.hooks", "SearchResult": "methods", "SearchTask": "methods", "Ticket": "ticket",
    "CrbgError": "errors", "find_ticket": "api", "initialise": "models.initial_weights", "rebuild": "runs.artifacts",
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crbg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crbg.{_HOME[name]}"), name)
