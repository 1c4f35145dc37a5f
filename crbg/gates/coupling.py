"""Which units of a network belong together: a trace of one forward pass.

A unit is a channel, a neuron or an attention head. It can be removed only as a whole: the channel of a residual stream,
for example, is written by several layers, passes batch norms, and is read by several other layers.

During the traced pass, every tensor carries integer labels of its own shape, one for each unit. A layer reads the
labels of its input with the columns of its weight, and writes new labels with its rows. Any other operation moves
labels (views, concatenations), joins labels (sums, products, batch norm), or reads units in a way that this module does
not know. The last kind pins its inputs: such units cannot be removed. An unknown operation therefore reduces the number
of units that can be removed, but never leads to wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from crbg.gates.layers import defaults, input_axis, raw, unwrap
from crbg.gates.selection import weights

PINNED = 0  # label of units that cannot be removed
_MOVES = """permute transpose t expand unsqueeze squeeze slice select unbind split split_with_sizes cat stack roll flip
index alias detach lift_fresh repeat"""
_COPIES = "clone _to_copy"
_POINTWISE = "_prelu_kernel hardswish hardswish_ hardsigmoid hardsigmoid_ mish"  # torch does not tag all of them
_POOLS = """max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
_adaptive_avg_pool2d adaptive_max_pool2d mkldnn_max_pool2d upsample_nearest2d upsample_bilinear2d"""
_BATCH_NORMS = """native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit
_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update"""


@dataclass(frozen=True)
class Coupling:
    """The units of a network. Equal numbers belong to one unit, and `PINNED` marks units that cannot be removed.

    Attributes:
        columns: Unit of each input column, by the name of a layer's weight.
        rows: Unit of each output row, by the name of a layer's weight.
        others: Unit of each element of all other parameters and buffers that the pass used, by name.
    """

    columns: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    others: Mapping[str, np.ndarray]


@torch.no_grad()
def trace(model: nn.Module, forward: Callable[[], Any]) -> Coupling:
    """Find the units of a network.

    Args:
        model: The network, in eval mode and without gates.
        forward: Calls the network once, on a small batch, and returns the outputs.
    """
    mode = _Trace(unwrap(model))
    handles = [handle for layer in mode.layers for handle in mode.watch(layer)]
    try:
        with mode:
            outputs = forward()
    finally:
        for handle in handles:
            handle.remove()
    mode.pin(outputs)
    return mode.result()


def shared_units(coupling: Coupling, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the units of the input columns of each weight whose units can be removed by closing gates.

    Weights with the same units share one gate for each of them. A weight is left out if one of its input units cannot
    be removed, is also read by a weight outside the current choice (`where`), or is read by another weight in another
    order, as behind a concatenation. Consecutive columns can have the same unit, as those of an attention head.

    Returns:
        The units by the name of the weight, without repetitions.
    """
    chosen = weights(model)
    pinned = {PINNED} | {int(u) for n, units in coupling.columns.items() if n not in chosen for u in units}
    found = {n: _regular(coupling.columns[n]) for n in chosen if n in coupling.columns}
    while True:
        reader: dict[int, tuple[int, ...]] = {}
        before = len(pinned)
        for name, units in found.items():
            whole = units is not None and all(reader.setdefault(u, units) == units for u in units)
            if not whole or pinned & set(cast(tuple[int, ...], units)):
                pinned |= {int(u) for u in coupling.columns[name]}
        if len(pinned) == before:
            return {n: units for n, units in found.items() if units is not None and not pinned & set(units)}


def _regular(columns: np.ndarray) -> tuple[int, ...] | None:
    """Return the units of consecutive columns, or None if they differ in their number of columns or repeat."""
    starts = np.flatnonzero(np.diff(columns, prepend=columns[0] - 1))
    units, spans = columns[starts], np.diff(starts, append=len(columns))
    return tuple(units.tolist()) if len(set(units)) == len(units) and len(set(spans)) == 1 else None


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries the labels along the operations of one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(t): n for n, t in [*model.named_buffers(), *model.named_parameters(), *weights(model).items()]}
        self.size = 1  # number of labels; label 0 is PINNED
        self.joined: list[Tensor] = []  # pairs of labels of one unit
        self.labels: dict[int, tuple[Tensor, Tensor]] = {}  # by identity; the tensor is stored to keep it alive
        self.depth = 0  # inside a layer, operations are not traced
        self.layers = [m for m in model.modules() if list(defaults(m)) == ["weight"] and raw(m, "weight") is not None]
        self.ends: dict[int, tuple[Tensor, Tensor]] = {}  # labels of rows and columns, by the identity of the weight

    def new(self, count: int) -> Tensor:
        """Return new labels."""
        self.size += count
        return torch.arange(self.size - count, self.size)

    def of(self, t: Tensor) -> Tensor:
        """Return the labels of a tensor; a tensor of unknown origin, as the network's input, is pinned."""
        if id(t) not in self.labels:
            known = id(t) in self.names and 0 < t.numel() <= 1 << 20
            labels = self.new(t.numel()).reshape(t.shape) if known else torch.zeros((), dtype=torch.long)
            self.labels[id(t)] = t, labels.expand(t.shape)
        return self.labels[id(t)][1]

    def set(self, t: Any, labels: Tensor) -> None:
        """Give labels to the result of an operation."""
        if isinstance(t, Tensor):
            self.labels[id(t)] = t, labels.expand(t.shape)

    def join(self, a: Tensor, b: Tensor) -> None:
        """Note that the labels a and b at the same position belong to one unit; the shapes are broadcast."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        for d in range(a.ndim):
            if a.stride(d) == b.stride(d) == 0:
                a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
        pairs = torch.unique(a.reshape(-1) * (1 << 31) + b.reshape(-1))
        self.joined.append(torch.stack([pairs >> 31, pairs & ((1 << 31) - 1)]))

    def pin(self, values: Any) -> None:
        """Note that all units of some tensors cannot be removed."""
        for t in tree_leaves(values):
            if isinstance(t, Tensor) and (id(t) in self.labels or id(t) in self.names):
                self.join(self.of(t), torch.zeros((), dtype=torch.long))

    def watch(self, layer: nn.Module) -> Iterator[Any]:
        """Trace a layer as a whole."""

        def before(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self.depth += 1

        def after(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], out: Any) -> None:
            self.depth -= 1
            if not self.depth:
                self.layer(layer, next(iter((*args, *keywords.values()))), out)

        yield layer.register_forward_pre_hook(before, with_kwargs=True)
        yield layer.register_forward_hook(after, with_kwargs=True)

    def layer(self, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        """Let a layer read units with the columns of its weight, and write units with its rows."""
        w, bias = cast(Tensor, raw(layer, "weight")), layer._parameters.get("bias")
        groups, axis = getattr(layer, "groups", 1), input_axis(layer, "weight")
        place = x.ndim - (w.ndim - 2) - 1  # the axis of the channels in inputs and outputs
        depthwise = groups == w.shape[0] == x.shape[place] and groups > 1
        if axis is None or w.ndim < 2 or place < 0 or (groups > 1 and not depthwise):
            self.pin([x, w])
            return
        count = w.shape[0] if depthwise else w.shape[1 - axis]
        if out.shape[place] != count or x.shape[place] != (count if depthwise else w.shape[axis]):
            self.pin([x, w])
            return
        if id(w) not in self.ends:
            rows = self.new(count)
            self.ends[id(w)] = rows, rows[:0] if depthwise else self.new(w.shape[axis])
        rows, columns = self.ends[id(w)]
        if bias is not None:
            self.join(self.of(bias), rows)
        self.join(self.of(x).movedim(place, -1), rows if depthwise else columns)
        self.set(out, rows.reshape([-1 if d == place else 1 for d in range(out.ndim)]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.depth:
            return out
        name = func.overloadpacket.__name__
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(id(t) in self.labels or id(t) in self.names for t in inputs):
            return out
        self.operation(name, func, args, kwargs, inputs, out)  # the mode is off here, so labels are not traced
        return out

    def operation(self, name: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> None:
        """Compute the labels of the results of one operation."""
        if name in _COPIES.split():
            self.set(out, self.of(inputs[0]))
        elif name in ("view", "_unsafe_view"):
            self.set(out, self.of(inputs[0]).reshape(out.shape))
        elif name in _MOVES.split():
            moved = tree_map(self._argument, args)
            for t, labels in zip(tree_leaves(out), tree_leaves(func(*moved, **kwargs)), strict=True):
                self.set(t, labels)
        elif torch.Tag.pointwise in func.tags or name in _POINTWISE.split():
            self.pointwise(inputs, out)
        elif name in _BATCH_NORMS.split():
            x, *parameters = inputs
            labels = self.of(x).movedim(1, -1)
            for p in parameters:
                self.join(labels, self.of(p))
            self.set(out[0], self.of(x))
        elif name in _POOLS.split():
            self.reduce(inputs[0], range(2, inputs[0].ndim), tree_leaves(out)[0], True)
        elif name in ("mean", "sum", "amax", "amin") and len(args) > 1:
            keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
            dims = [args[1]] if isinstance(args[1], int) else args[1] or range(inputs[0].ndim)
            self.reduce(inputs[0], dims, out, keep)
        elif name == "_softmax":
            self.reduce(inputs[0], [args[1]], out, True)
        elif name in ("bmm", "mm") or name.startswith("_scaled_dot_product"):
            self.products(inputs, tree_leaves(out)[0])
        else:
            self.pin(inputs)

    def _argument(self, t: Any) -> Any:
        """Return the labels of a floating-point tensor, and any other argument, such as an index, as it is."""
        if not isinstance(t, Tensor):
            return t
        return self.of(t) if t.is_floating_point() else t.cpu()

    def pointwise(self, inputs: list[Tensor], out: Tensor) -> None:
        """Join the labels of the operands of an elementwise operation."""
        # A parameter has one label for each element, so the labels of another operand are preferred for the result.
        whole = sorted((t for t in inputs if t.shape == out.shape), key=lambda t: id(t) in self.names)
        if not whole:
            self.pin(inputs)
            return
        labels = self.of(whole[0])
        for t in inputs:
            other = self.of(t).reshape([1] * (out.ndim - t.ndim) + list(t.shape))
            spread = [d for d in range(out.ndim) if other.shape[d] == 1 < out.shape[d]]
            if all(_constant(labels, d) for d in spread):
                self.join(labels, other)
            else:  # one value acts on several units, and belongs to none of them
                self.pin(t)
        self.set(out, labels)

    def reduce(self, x: Tensor, dims: Any, out: Tensor, keep: bool) -> None:
        """Combine the values along some axes, as pooling does; an axis with several units pins them."""
        labels = self.of(x)
        dims = sorted({d % x.ndim for d in dims}, reverse=True)
        if not all(_constant(labels, d) for d in dims):
            self.pin(x)
            return
        for d in dims:
            labels = labels.narrow(d, 0, 1) if keep else labels.select(d, 0)
        self.set(out, labels)

    def products(self, inputs: list[Tensor], out: Tensor) -> None:
        """Join all units inside each of a batch of matrix products: those of an attention head belong together."""
        same = [t for t in inputs if t.shape[:-2] == out.shape[:-2] and t.ndim >= 2 and id(t) not in self.names]
        if others := [t for t in inputs if all(t is not s for s in same)]:
            self.pin(others)
        if len(same) < 2:
            self.pin(inputs)
            return
        head = self.of(same[0])[..., :1, :1]
        for t in same:
            self.join(self.of(t), head)
        self.set(out, head)

    def result(self) -> Coupling:
        """Return the units: connected components of the joined labels."""
        pairs = torch.cat(self.joined, 1).numpy()
        graph = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(self.size, self.size))
        roots = connected_components(graph, directed=False)[1].astype(np.int64)
        roots -= roots[PINNED]
        ends = {
            self.names[i]: (roots[rows.numpy()], roots[columns.numpy()]) for i, (rows, columns) in self.ends.items()
        }
        others = {n: roots[self.labels[i][1].numpy()] for i, n in self.names.items() if i in self.labels}
        return Coupling(
            {n: columns for n, (_, columns) in ends.items() if len(columns)},
            {n: rows for n, (rows, _) in ends.items()},
            {n: labels for n, labels in others.items() if n not in ends},
        )


def _constant(labels: Tensor, d: int) -> bool:
    """Return whether the labels are the same along an axis."""
    return labels.stride(d) == 0 or bool((labels == labels.narrow(d, 0, 1)).all())
