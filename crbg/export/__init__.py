"""Export tickets in forms that are ready to ship; `crbg export` calls `export_ticket`.

Public names are imported on first use, so that the command line does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {  # public names, by the module that defines them
    "c": ("to_c",),
    "check": ("Examples", "compare", "predictions"),
    "dead_units": ("shrink",),
    "onnx": ("to_onnx",),
    "timing": ("measure",),
    "write": ("Report", "export_ticket"),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'crbg.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crbg.export.{_MODULE[name]}"), name)
