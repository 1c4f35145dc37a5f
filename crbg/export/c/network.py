"""Read a sequential network as a chain of steps with known shapes: the input of the C generator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from crbg.errors import CrbgError

F32 = NDArray[np.float32]
Shape = tuple[int, ...]
SUPPORTED = (
    "Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, LeakyReLU, PReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, "
    "Flatten, Dropout, Identity"
)
_PASSIVE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pooling layer; each field is (rows, columns)."""

    inputs: Shape
    outputs: Shape
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape = (1, 1)

    @property
    def taps(self) -> int:
        """Number of elements of the kernel."""
        return self.kernel[0] * self.kernel[1]


@dataclass
class Finish:
    """What follows the sum of a unit: y = sum * scale + shift, then y < 0 ? slope * y : y.

    Attributes:
        scale: One factor per unit, or None for 1.
        shift: One term per unit, or None for 0.
        slope: One slope for all units, or one per unit; 1 without an activation.
        activated: Whether an activation has been added.
    """

    scale: F32 | None = None
    shift: F32 | None = None
    slope: F32 = field(default_factory=lambda: np.ones(1, np.float32))
    activated: bool = False

    def then_affine(self, scale: F32, shift: F32) -> None:
        """Append y * scale + shift, with one value per unit."""
        self.shift = shift if self.shift is None else self.shift * scale + shift
        self.scale = scale if self.scale is None else self.scale * scale


@dataclass
class Step:
    """One function of the C program, with the shapes of one input and one output, without the batch axis."""

    name: str
    in_shape: Shape
    out_shape: Shape

    @property
    def outputs(self) -> int:
        """Number of output values."""
        return math.prod(self.out_shape)


@dataclass
class Weighted(Step):
    """A linear layer or a convolution.

    Attributes:
        weight: Weights of each unit, (units, columns); a column of a convolution is channel * taps + tap, with the
            channels of the unit's group. Pruned weights are 0.
        finish: Batch norm and activation that follow.
        window: Geometry of a convolution; None for a linear layer.
        groups: Number of groups of a convolution.
    """

    weight: F32
    finish: Finish
    window: Window | None = None
    groups: int = 1


@dataclass
class Pool(Step):
    """Max-pooling, or average pooling with a divisor: 0 the elements in the input, -1 those in the padding too."""

    window: Window
    average: bool
    divisor: int = 0


@dataclass
class Pointwise(Step):
    """A batch norm or an activation that does not follow a linear layer or a convolution directly."""

    finish: Finish


@dataclass
class Pixels(Step):
    """Bytes from 0 to 255 as the input: the network gets pixel * scale + shift, with one value per channel each."""

    scale: F32
    shift: F32


@dataclass
class PixelLinear(Weighted):
    """A linear layer that converts each pixel when it reads it.

    Attributes:
        pixels: The conversion.
    """

    pixels: Pixels = field(kw_only=True)


def read(model: nn.Module, in_shape: Shape) -> list[Step]:
    """Return the steps of a network in eval mode.

    Args:
        model: A linear layer, a convolution, or an `nn.Sequential` of supported layers; nested ones are allowed.
        in_shape: Shape of an input without the batch axis.

    Raises:
        CrbgError: a layer is not supported, still has gates, has weights that are not finite float32 numbers, or does
            not fit the shape; the message names it.
    """
    steps: list[Step] = []
    example = torch.zeros(1, *in_shape)
    for name, layer in _layers("", model):
        _check(name, layer)
        try:
            with torch.no_grad():
                after = layer.eval()(example)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CrbgError(
                f"layer {name!r} does not take an input of shape {tuple(example.shape[1:])}; pass the shape of one "
                f"input as in_shape ({' '.join(str(error).split())[:120]})"
            ) from None
        _append(steps, name, layer, tuple(example.shape[1:]), tuple(after.shape[1:]))
        example = after
    if not any(isinstance(step, Weighted) for step in steps):
        raise CrbgError("the network has no linear layer and no convolution, so there is nothing to export")
    return steps


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        if _hooked(module) and not any(map(parametrize.is_parametrized, module.modules())):  # gates have hooks too
            raise CrbgError(_hooks_of(name))
        for child, layer in module._modules.items():  # `named_children` leaves out a layer that occurs again
            if layer is not None:
                yield from _layers(f"{name}.{child}".lstrip("."), layer)
    else:
        yield name, module


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _hooks_of(name: str) -> str:
    what = f"layer {name!r}" if name else "the network"
    return f"{what} has forward hooks, which a C program does not execute; remove them first"


def _check(name: str, layer: nn.Module) -> None:
    """Check that a layer is supported and can be read."""
    kind = type(layer)
    if _hooked(layer):
        raise CrbgError(_hooks_of(name))
    if parametrize.is_parametrized(layer):
        raise CrbgError(f"layer {name!r} has gates or other parametrisations; call crbg.bake(model, mask) first")
    if kind not in (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten) and (
        kind not in _PASSIVE + _NORMS + _ACTIVATIONS
    ):
        if not name:
            raise CrbgError(
                f"the order of the layers of {kind.__name__} is not known; C programs are made from an nn.Sequential "
                f"of {SUPPORTED}"
            )
        raise CrbgError(f"layer {name!r} is a {kind.__name__}, which C programs do not support; supported: {SUPPORTED}")
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is None:
        raise CrbgError(f"layer {name!r} has no running statistics, so its outputs depend on the batch")
    for part, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CrbgError(f"{name}.{part} must be float32, not {tensor.dtype}; call model.float()")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CrbgError(f"{name}.{part} contains NaN or infinity")


def _append(steps: list[Step], name: str, layer: nn.Module, before: Shape, after: Shape) -> None:
    """Append a layer to the steps, or merge it into the last step."""
    last = steps[-1] if steps else None
    if isinstance(layer, nn.Linear):
        if len(before) != 1:
            raise CrbgError(f"layer {name!r} is applied to inputs of shape {before}; put an nn.Flatten() before it")
        steps.append(Weighted(name, before, after, _array(layer.weight), _bias(layer)))
    elif isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise CrbgError(f"layer {name!r} has padding_mode={layer.padding_mode!r}; C programs support zeros only")
        weight = _array(layer.weight.flatten(1))
        steps.append(Weighted(name, before, after, weight, _bias(layer), _window(layer, before, after), layer.groups))
    elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        steps.append(_pool(name, layer, before, after))
    elif isinstance(layer, nn.Flatten):
        if len(after) != 1:
            raise CrbgError(f"layer {name!r} must flatten all axes of an input, but returns the shape {after}")
    elif isinstance(layer, _NORMS + _ACTIVATIONS):
        joins = isinstance(last, Weighted | Pointwise) and not last.finish.activated and last.out_shape == before
        if not joins:
            last = Pointwise(name, before, after, Finish())
            steps.append(last)
        _finish(cast(Weighted | Pointwise, last).finish, layer)


def _finish(finish: Finish, layer: nn.Module) -> None:
    """Add a batch norm or an activation to the end of a step."""
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        mean, variance = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        scale = 1.0 / torch.sqrt(variance.double() + layer.eps)
        scale = scale if layer.weight is None else scale * layer.weight.double()
        shift = -mean.double() * scale
        shift = shift if layer.bias is None else shift + layer.bias.double()
        finish.then_affine(_array(scale), _array(shift))
        return
    slope = _array(layer.weight) if isinstance(layer, nn.PReLU) else [getattr(layer, "negative_slope", 0.0)]
    finish.slope, finish.activated = np.asarray(slope, np.float32), True


def _bias(layer: nn.Linear | nn.Conv2d) -> Finish:
    none = layer.bias is None or not bool(layer.bias.any())  # `initialise` sets all biases to 0
    return Finish(shift=None if none else _array(cast(Tensor, layer.bias)))


def _pool(name: str, layer: Any, before: Shape, after: Shape) -> Pool:
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        if before[1] % after[1] or before[2] % after[2]:
            raise CrbgError(f"layer {name!r}: the output size {after[1:]} does not divide the input size {before[1:]}")
        kernel = (before[1] // after[1], before[2] // after[2])
        return Pool(name, before, after, Window(before[1:], after[1:], kernel, kernel, (0, 0)), average=True)
    if _pair(getattr(layer, "dilation", 1)) != (1, 1):
        raise CrbgError(f"layer {name!r} has a dilation, which C programs do not support in pooling layers")
    window = Window(
        before[1:], after[1:], _pair(layer.kernel_size), _pair(layer.stride or layer.kernel_size), _pair(layer.padding)
    )
    average = isinstance(layer, nn.AvgPool2d)
    divisor = (layer.divisor_override or -int(layer.count_include_pad)) if average else 0
    return Pool(name, before, after, window, average, divisor)


def _window(layer: nn.Conv2d, before: Shape, after: Shape) -> Window:
    kernel, dilation = _pair(layer.kernel_size), _pair(layer.dilation)
    if isinstance(layer.padding, str):
        same = layer.padding == "same"
        padding = tuple(d * (k - 1) // 2 if same else 0 for k, d in zip(kernel, dilation, strict=True))
    else:
        padding = _pair(layer.padding)
    return Window(before[1:], after[1:], kernel, _pair(layer.stride), padding, dilation)


def _pair(value: int | tuple[int, ...]) -> Shape:
    return (value, value) if isinstance(value, int) else tuple(value)


def _array(tensor: Tensor) -> F32:
    return tensor.detach().cpu().to(torch.float32).numpy().copy()
