"""Columns of a user's data in memory: arrays, data frames and lists become tensors with one entry per example."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crbg.errors import CrbgError, few
from crbg.training.trees import stored_values, tensors


def forbidden(tree: Any) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """Return the tests that no number of a tensor, or of a nested structure of tensors, may pass, by name.

    Infinity is allowed in one of several tensors, because a float mask of attention contains it.
    """
    return {"NaN": torch.isnan, "infinity": torch.isinf} if isinstance(tree, Tensor) else {"NaN": torch.isnan}


def not_finite(tree: Any) -> str:
    """Return the name of the first of the `forbidden` values that a tree of tensors contains, or an empty string."""
    for what, wrong in forbidden(tree).items():
        if any(bool(wrong(t).any()) for t in stored_values(tree)):
            return what
    return ""


def check_finite(name: str, columns: Any) -> None:
    """Check all examples, because a NaN among the held-out ones would not stop the search; see `forbidden`.

    Args:
        name: `inputs` or `labels`.
        columns: A tensor, or a nested structure of tensors, with one entry per example.

    Raises:
        CrbgError: an example contains NaN or infinity; the message gives its position.
    """
    for t in tensors(columns):
        if bool(torch.isfinite(t.sum())):  # one fast pass; a sum of finite values can still overflow
            continue
        for what, wrong in forbidden(columns).items():
            if bool((bad := wrong(t).reshape(len(t), -1).any(1)).any()):
                raise CrbgError(
                    f"the {name} of example {int(bad.nonzero()[0])} contain {what} ({int(bad.sum())} of {len(t)} do); "
                    "remove or replace such values"
                )


def label_column(data: Any) -> Any:
    """Return the likely column of labels of a data frame: one with a usual name, or the last; otherwise None."""
    names = list(getattr(data, "columns", ()))
    usual = [n for n in names if str(n).lower() in ("label", "labels", "target", "class", "y")]
    return (usual or names)[-1] if len(names) > 1 else None


def _kinds(value: Any) -> dict[Any, str]:
    """Return NumPy's letter for the type of each column of a data frame or series; `O` for anything but numbers."""
    found: Any = getattr(value, "dtypes", None)
    named = dict(found.items()) if hasattr(found, "items") else {} if found is None else {"": found}
    return {name: getattr(kind, "kind", "O") for name, kind in named.items()}


def _array(value: Any) -> Any:
    """Return a column as an array; a data frame whose columns have several numeric types becomes float64."""
    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    kinds = set(_kinds(value).values())
    if array.dtype.kind != "O" or not kinds or not kinds <= set("biuf"):
        return array
    array = value.to_numpy(dtype=np.float64, na_value=math.nan)
    return array if "f" in kinds or np.isnan(array).any() else array.astype(np.int64)


def _not_numbers(value: Any, dtype: Any) -> CrbgError:
    """Return an error that names the columns of a data frame that contain no numbers, and how to encode them."""
    names = [name for name, kind in _kinds(value).items() if kind not in "biuf" and name != ""]
    if names:
        return CrbgError(
            f"columns of the data frame contain no numbers: {few([repr(n) for n in names])}; encode each one, for "
            f"example with `df[{names[0]!r}] = pd.factorize(df[{names[0]!r}])[0]`, or drop it"
        )
    hint = "encode them as numbers, for example with `pd.factorize(values)[0]`"
    return CrbgError(f"the data contain values of type {dtype}, not numbers; {hint}, and replace missing values")


def is_columns(data: Any) -> bool:
    """Return whether data are arrays with one entry per example, and not a sequence of batches."""
    if isinstance(data, Mapping):
        return bool(data) and all(_is_column(v) for v in data.values())
    if isinstance(data, list):
        return len(data) == 2 and all(map(_is_column, data))
    if not isinstance(data, tuple) or not data:
        return False
    if len(data) == 2 and any(map(_is_column, data)):  # the inputs or the labels may be several arrays
        return all(_is_column(part) or (isinstance(part, Mapping | tuple) and is_columns(part)) for part in data)
    return all(map(_is_column, data))


def _is_column(value: Any) -> bool:
    if isinstance(value, list):
        while isinstance(value, list) and value:
            value = value[0]
        return isinstance(value, int | float | str | list | np.generic)
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy")


def tensor_tree(data: Any, dtype: torch.dtype) -> Any:
    """Return a nested structure of columns as tensors; float64 becomes `dtype`."""
    if isinstance(data, Mapping):
        return {k: tensor_tree(v, dtype) for k, v in data.items()}
    return tuple(tensor_tree(v, dtype) for v in data) if isinstance(data, tuple) else _tensor(data, dtype)


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Convert one column to a tensor; float64, and any floating-point type of other libraries, becomes `dtype`.

    Raises:
        CrbgError: the values are not numbers, or rows have different lengths.
    """
    if not isinstance(value, Tensor):
        try:
            array = _array(value)
        except ValueError:
            raise CrbgError("the rows of a list have different lengths; pad them to one length") from None
        if array.dtype.kind not in "biuf":
            raise _not_numbers(value, array.dtype)
        unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch lacks most operations for these types
        native = np.int64 if unsigned else array.dtype.newbyteorder("=")
        column = torch.from_numpy(np.require(array, native, ["C", "W"]))
        return column.to(dtype) if column.is_floating_point() else column  # NumPy has no bfloat16
    return value.to(dtype) if value.dtype == torch.float64 else value
