"""Nested structures of tensors: batches and outputs as dicts, tuples, dataclasses and objects of other libraries."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crbg.errors import few

SHOWN = 8  # number of children of a container that `shapes` describes


def move(tree: Any, device: torch.device) -> Any:
    """Return a nested structure with all tensors and arrays on the device.

    Objects with a method `to`, such as the batches of transformers and torch_geometric, move themselves.
    """
    if isinstance(tree, np.ndarray) and tree.dtype != object:
        tree = torch.as_tensor(tree)
    if isinstance(tree, Tensor):
        moved = tree.to(device)
        return moved.clone() if moved.is_inference() else moved  # autograd cannot save inference tensors
    if not isinstance(tree, type) and callable(getattr(tree, "to", None)):
        return tree.to(device)
    return _rebuild(tree, lambda child: move(child, device))


def map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return a copy of a nested structure in which `change` has replaced every tensor."""
    return change(tree) if isinstance(tree, Tensor) else _rebuild(tree, lambda child: map_tensors(change, child))


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested structure in order."""
    if isinstance(tree, Tensor):
        yield tree
    for _, child in _children(tree):
        yield from tensors(child)


def stored_values(tree: Any) -> Iterator[Tensor]:
    """Yield the values of the tensors of a nested structure in order; of a sparse tensor, those that it stores."""
    for t in tensors(tree):
        if t.layout == torch.strided:
            yield t
        else:
            yield t.coalesce().values() if t.layout == torch.sparse_coo else t.values()


def shapes(tree: Any) -> str:
    """Describe the shapes and types of a nested structure for an error message."""
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {str(tree.dtype).removeprefix('torch.')}"
    children = list(_children(tree))
    if not children:
        return type(tree).__name__
    parts = [f"{key}: {shapes(child)}" if isinstance(key, str) else shapes(child) for key, child in children[:SHOWN]]
    inner = few([*parts, *children[SHOWN:]], SHOWN)
    return f"{type(tree).__name__}({inner})"


def _children(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the (key or attribute or index, child) pairs of a container; yield nothing for a leaf."""
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, list | tuple):
        yield from zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True)
    elif _has_attributes(tree):
        yield from vars(tree).items()


def _has_attributes(tree: Any) -> bool:
    """Return whether a value is a plain record: a dataclass or another object that stores tensors as attributes."""
    if isinstance(tree, type | nn.Module | Tensor) or not hasattr(tree, "__dict__"):
        return False
    return dataclasses.is_dataclass(tree) or any(isinstance(v, Tensor) for v in vars(tree).values())


def _rebuild(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container of the same type with changed children, or the value itself if it is a leaf."""
    changed = {key: change(child) for key, child in _children(tree)}
    if type(tree) is dict:
        return changed
    if not changed:
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*changed.values())
    if isinstance(tree, list | tuple):
        return type(tree)(changed.values())
    twin = copy.copy(tree)
    if isinstance(tree, MutableMapping):
        for key, child in changed.items():
            twin[key] = child
    else:
        vars(twin).update(changed)
    return twin
