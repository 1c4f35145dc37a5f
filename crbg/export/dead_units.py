"""Cut dead units out of a sparse network: the result is a smaller dense network with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, reason
from crbg.export.inputs import check_computes, check_example, copied, difference, outputs
from crbg.gates.attach import attached_gates, bake
from crbg.gates.coupling import PINNED, Coupling, trace
from crbg.gates.layers import entries, input_axis, slot
from crbg.measure.accuracy import eval_mode
from crbg.training.trees import map_tensors

# Attributes of layers that repeat the size of a weight, with the axis of this size.
_SIZES = {
    "weight": {"out_features": 0, "in_features": 1, "out_channels": 0, "in_channels": 1, "num_parameters": 0},
    "running_mean": {"num_features": 0},
}


@torch.no_grad()
def shrink(model: nn.Module, mask: Mapping[str, Tensor] | None, example: Any, tolerance: float = 1e-9) -> nn.Module:
    """Return a smaller network without the dead units of a sparse network. Its outputs in eval mode are the same.

    A unit (a channel, a neuron or an attention head) is dead if all weights that read it are zero, or if all weights
    that compute it are zero. In the second case its value is a constant, which is added to the biases of the layers
    that read it. If such a layer pads its inputs with zeros, only the constant 0 can be removed.
    `crbg.gates.coupling` finds the units. Each layer keeps at least one unit.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from crbg.export import shrink
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask = {"2.weight": torch.tensor([True] * 5 + [False] * 3).expand(2, 8)}
        >>> shrink(model, mask, torch.ones(4, 3))
        Sequential(
          (0): Linear(in_features=3, out_features=5, bias=True)
          (1): ReLU()
          (2): Linear(in_features=5, out_features=2, bias=True)
        )

    Args:
        model: Any module. It is not changed.
        mask: One tensor of factors for each weight, by name, as `Ticket.mask`; None if the zeros are in the weights
            already.
        example: A batch of inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        tolerance: Largest difference of an output in float64, relative to the largest output.

    Returns:
        A new module of the same type, with the dtypes and the modes of the model.

    Raises:
        CrbgError: the mask does not fit, no unit is dead, or the outputs would change.
    """
    check_example(example)
    if mask is not None and not isinstance(mask, Mapping):
        raise CrbgError(f"mask must be a mapping of names to tensors, as `ticket.mask`, not {type(mask).__name__}")
    sparse = copied(model)
    if mask is not None or attached_gates(sparse):
        bake(sparse, mask)
    exact = copy.deepcopy(sparse).double()
    inputs = [map_tensors(_double, example), map_tensors(_noisy, example)]
    with eval_mode(exact):
        before = [check_computes(exact, x) for x in inputs]
        try:
            coupling = trace(exact, lambda: outputs(exact, inputs[0]))
            layers = _layers(exact, coupling, inputs)
        except IndexError as error:
            raise CrbgError(
                f"the units of the network are not found with this example ({reason(error)}); the first axis of each "
                "tensor must be the batch"
            ) from error
    dead = _spared(_dead(layers), layers)
    if not dead:
        raise CrbgError(
            "no unit of the network is dead, so nothing can be cut out; search for units with "
            "`granularity='stream'` of the method crbg. Units behind control flow that depends on data are not found"
        )
    for network in (exact, sparse):
        _cut(network, coupling, layers, dead)
    with eval_mode(exact):
        _compare(exact, inputs, before, tolerance)
    return sparse


@dataclass
class Layer:
    """A layer that reads units with its columns and computes units with its rows.

    Attributes:
        rows: Unit of each row.
        columns: Unit of each column; empty for a depthwise convolution.
        used: Whether the weights are non-zero, (rows, columns).
        fold: What the inputs of each column add to each row if they are constant, (rows, columns).
        constant: Whether each input column has the same value for all inputs, in a form that a bias can replace.
    """

    rows: np.ndarray
    columns: np.ndarray
    used: np.ndarray
    fold: np.ndarray
    constant: np.ndarray = field(repr=False)


def _layers(model: nn.Module, coupling: Coupling, inputs: list[Any]) -> dict[str, Layer]:
    """Describe the layers of a network by the names of their weights."""
    places = {name: cast(tuple[nn.Module, str], slot(model, name)) for name in coupling.rows}
    spatial = {name: cast(Tensor, layer.weight).ndim - 2 for name, (layer, _) in places.items()}
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            x = next(iter((*args, *keywords.values())))
            flat = x.movedim(x.ndim - spatial[name] - 1, -1).flatten(0, -2)
            low[name] = torch.minimum(low.get(name, flat[0]), flat.amin(0))
            high[name] = torch.maximum(high.get(name, flat[0]), flat.amax(0))

        return hook

    handles = [layer.register_forward_pre_hook(watch(n), with_kwargs=True) for n, (layer, _) in places.items()]
    for x in inputs:
        outputs(model, x)
    for handle in handles:
        handle.remove()
    found = {}
    for name, (layer, attribute) in places.items():
        w = _matrix(layer, attribute)
        columns = coupling.columns.get(name, np.zeros(0, dtype=np.int64))
        if not len(columns):
            found[name] = Layer(coupling.rows[name], columns, *(np.zeros((len(w), 0)),) * 2, np.zeros(0, dtype=bool))
            continue
        same = high[name] - low[name] <= 1e-12 * high[name].abs()
        foldable = same & (low[name] == 0) if _padded(layer, spatial[name]) else same
        fold = w.sum(2) * low[name]
        found[name] = Layer(coupling.rows[name], columns, (w != 0).any(2).numpy(), fold.numpy(), foldable.numpy())
    return found


def _matrix(layer: nn.Module, attribute: str) -> Tensor:
    """Return a weight with the axes (rows, columns, position in the kernel)."""
    w = cast(Tensor, getattr(layer, attribute)).detach()
    w = w.transpose(0, 1) if input_axis(layer, attribute) == 0 else w
    return w.reshape(*w.shape[:2], -1)


def _padded(layer: nn.Module, kernel: int) -> bool:
    """Return whether a constant input can have another effect at the borders than elsewhere."""
    padding = getattr(layer, "padding", ())
    return (padding != "valid" and any(padding)) or (kernel > 0 and input_axis(layer, "weight") == 0)


def _dead(layers: Mapping[str, Layer]) -> set[int]:
    """Return the dead units. A removed unit can make others dead, so the search is repeated until it finds no more."""
    units = {int(u) for layer in layers.values() for u in (*layer.rows, *layer.columns)} - {PINNED}
    size = max(units, default=0) + 1
    dead = np.zeros(size, dtype=bool)
    while True:
        read, computed, varies = (np.zeros(size, dtype=bool) for _ in range(3))
        for layer in layers.values():
            live = layer.used * ~dead[layer.rows][:, None] * ~dead[layer.columns]
            np.logical_or.at(read, layer.columns, live.any(0))
            np.logical_or.at(computed, layer.rows, live.any(1))
            np.logical_or.at(varies, layer.columns, ~layer.constant)
        found = (~read | (~computed & ~varies)) | dead
        found[PINNED] = False
        if (found == dead).all():
            return {u for u in units if dead[u]}
        dead = found


def _spared(dead: set[int], layers: Mapping[str, Layer]) -> set[int]:
    """Return the dead units without one for each layer that would otherwise lose all its rows or all its columns."""
    for layer in layers.values():
        for units in (layer.rows, layer.columns):
            if len(units) and dead.issuperset(units.tolist()):
                dead = dead - {int(units[0])}
    return dead


def _cut(model: nn.Module, coupling: Coupling, layers: Mapping[str, Layer], dead: set[int]) -> None:
    """Remove the dead units from all parameters and buffers of a network, in place."""
    for name, layer in layers.items():
        _fold(cast(tuple[nn.Module, str], slot(model, name))[0], layer, dead)
    kept: dict[str, list[np.ndarray]] = {}
    for name, layer in layers.items():
        module, attribute = cast(tuple[nn.Module, str], slot(model, name))
        ends = [layer.rows, layer.columns] if len(layer.columns) else [layer.rows]
        kept[name] = ends[::-1] if input_axis(module, attribute) == 0 and len(ends) == 2 else ends
    new: dict[int, Tensor] = {}
    for name, _, _, t in entries(model):
        axes = kept.get(name) or list(_axes(name, coupling.others.get(name), dead))
        cut = t.detach()
        for axis, units in enumerate(axes):
            alive = torch.from_numpy(~np.isin(units, list(dead)))
            cut = cut[(slice(None),) * axis + (alive,)] if not bool(alive.all()) else cut
        if cut.shape != t.shape:
            new[id(t)] = nn.Parameter(cut, t.requires_grad) if isinstance(t, nn.Parameter) else cut
    for _, part, key, t in list(entries(model)):
        part[key] = new.get(id(t), t)
    _update_sizes(model, coupling, dead)


def _axes(name: str, units: np.ndarray | None, dead: set[int]) -> Iterator[np.ndarray]:
    """Yield the units of a tensor along its axes; only one axis has more than one."""
    if units is None or units.ndim == 0:
        return
    gone = np.isin(units, list(dead))
    for axis in range(units.ndim):
        flat = np.moveaxis(gone, axis, 0).reshape(units.shape[axis], -1)
        if gone.any() and (flat.all(1) == flat.any(1)).all():
            yield np.moveaxis(units, axis, 0).reshape(units.shape[axis], -1)[:, 0]
            return
        yield np.full(units.shape[axis], PINNED)
    if gone.any():
        raise CrbgError(f"the dead units of {name!r} cannot be cut out: they are no slices of the tensor")


def _fold(module: nn.Module, layer: Layer, dead: set[int]) -> None:
    """Add what dead constant inputs contribute to the bias of a layer."""
    constant = np.isin(layer.columns, list(dead))
    shift = torch.from_numpy(layer.fold[:, constant].sum(1) * ~np.isin(layer.rows, list(dead)))
    if not bool(shift.any()):
        return
    w = cast(Tensor, module.weight)
    if module._parameters.get("bias") is None:
        module.register_parameter("bias", nn.Parameter(w.new_zeros(len(shift)), w.requires_grad))
    cast(Tensor, module.bias).add_(shift.to(w.dtype))


def _update_sizes(model: nn.Module, coupling: Coupling, dead: set[int]) -> None:
    """Set the attributes that repeat sizes: those of layers, and the number of heads of timm's attention layers."""
    for prefix, module in model.named_modules():
        for tensor, sizes in _SIZES.items():
            t = getattr(module, tensor, None)
            for attribute, axis in sizes.items():
                if isinstance(t, Tensor) and attribute in module.__dict__:
                    swapped = input_axis(module, tensor) == 0 and t.ndim > 1
                    setattr(module, attribute, t.shape[1 - axis if swapped else axis])
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Conv3d) and module.groups > 1:
            module.groups = module.in_channels = module.out_channels
        columns = coupling.columns.get(f"{prefix}.proj.weight")
        if columns is not None and hasattr(module, "num_heads"):
            heads = len(set(columns.tolist()) - dead)
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.attn_dim * heads // module.num_heads
            module.num_heads = heads


def _compare(model: nn.Module, inputs: list[Any], before: list[list[Tensor]], tolerance: float) -> None:
    """Check that a network has the given outputs.

    Raises:
        CrbgError: it cannot run, or an output differs.
    """
    for x, expected in zip(inputs, before, strict=True):
        try:
            found = outputs(model, x)
        except (RuntimeError, ValueError) as error:
            raise CrbgError(
                f"the network does not run without its dead units, because its forward pass has fixed sizes "
                f"({reason(error, limit=160)}); leave the layers with these units out of the search"
            ) from None
        largest = difference(expected, found)
        if not largest <= tolerance:
            raise CrbgError(
                f"without its dead units, the outputs of the network change by {largest:.2g} of the largest output, "
                f"more than {tolerance:g}; the units are not dead in this network"
            )


def _double(t: Tensor) -> Tensor:
    return t.cpu().double() if t.is_floating_point() else t.cpu()


def _noisy(t: Tensor) -> Tensor:
    """Return a second input, because one input cannot show which units are constant."""
    noise = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return _double(t) + noise * (_double(t).std() if t.numel() > 1 else 1.0) if t.is_floating_point() else t.cpu()
