"""Strong lottery tickets by continuously relaxed Bernoulli gates, beside every baseline, measured and judged.

The public names are loaded on first use, so that planning a workflow does not pay for importing torch. Functions that
bear the name of their module stay there: `crbg.attach.attach`, `crbg.select.select`, `crbg.fit.fit`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Mask": "mask", "Gate": "gate", "Gaussian": "gate", "Units": "gate", "Fixed": "gate", "TopK": "gate",
    "gates": "attach", "bake": "attach", "detach": "attach", "bypass": "attach", "sampling": "attach", "weights": "attach",
    "keep_count": "select", "layer_counts": "select", "Search": "fit", "Found": "methods", "Ticket": "ticket",
    "CrbgError": "errors", "find_ticket": "find", "initialise": "init", "rebuild": "run",
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crbg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crbg.{_HOME[name]}"), name)
