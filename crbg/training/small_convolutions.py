"""Convolutions over few positions as matrix products, which some processors compute much faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

POSITIONS = 4  # largest number of positions of an output map, except for 1 x 1 kernels
CHANNELS = 16  # least number of input channels


def faster(device: torch.device) -> bool:
    """Return whether products are faster on a device: on processors with AMX.

    There, oneDNN's gradient of the weights is slow for maps of few positions (benchmarks/convolutions.md).
    """
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


class AsProducts(TorchFunctionMode):
    """A context manager in which such convolutions are computed as matrix products. Results are equal up to rounding.

    If the inputs are in channels-last order, as in a search in bfloat16, a 1 x 1 kernel needs no copy of them.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and not kwargs and _suits(*args):
            return convolution(*args[:5])
        return func(*args, **(kwargs or {}))


def _suits(
    x: Tensor, w: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> bool:
    if x.ndim != 4 or groups != 1 or w.shape[1] < CHANNELS or isinstance(padding, str) or set(_pair(dilation)) != {1}:
        return False
    if tuple(w.shape[2:]) == (1, 1):
        return not any(_pair(padding))
    height, width = _positions(x, w, _pair(stride), _pair(padding))
    return height * width <= POSITIONS


def convolution(x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0) -> Tensor:
    """Compute `F.conv2d(x, w, bias, stride, padding)` as a matrix product.

    Args:
        x: Inputs, (N, C, H, W).
        w: Weights, (O, C, h, w).
        bias: Bias, (O,).
        stride: One number, or one for each axis.
        padding: One number, or one for each axis.
    """
    (down, right), (top, left) = _pair(stride), _pair(padding)
    height, width = _positions(x, w, (down, right), (top, left))
    pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top)) if top or left else x.permute(0, 2, 3, 1)
    patches = [
        pixels[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(w.shape[2])
        for j in range(w.shape[3])
    ]
    columns = torch.cat(patches, -1) if len(patches) > 1 else patches[0]
    return F.linear(columns, w.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def _positions(x: Tensor, w: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    sizes = zip(x.shape[2:], w.shape[2:], stride, padding, strict=True)
    height, width = ((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in sizes)
    return height, width


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return first, second
