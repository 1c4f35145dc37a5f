"""Assemble the C code: tables of each layer, the functions that the network needs, and the public functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crbg.export.c.network import F32, Finish, PixelLinear, Pixels, Pointwise, Pool, Step, Weighted, Window
from crbg.export.c.seeded import Seeded

TILE = 16  # images in a tile, as in parts/tile.c
SLICE = 4  # units in a slice of a linear layer, as in parts/linear.c
BYTES = {"uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "float": 4}


@dataclass
class Program:
    """The C code of one network.

    Attributes:
        steps: The steps of the network.
        seeds: How to draw the weights of each layer, by the name of its step; empty for stored weights.
        law: The part with the law of the weights; empty for stored weights.
        at_start: Whether the weights are drawn once, into tables in RAM.
        position: Integer type of the tables.
        tables: Definitions of all tables, as C code.
        draws: Statements that draw the weights at start.
        constant: Bytes of the constant tables.
        ram: Bytes of the tables that are drawn at start.
    """

    steps: list[Step]
    seeds: Mapping[str, Seeded]
    law: str
    at_start: bool
    position: str = "uint16_t"
    tables: list[str] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    constant: int = 0
    ram: int = 0

    def __post_init__(self) -> None:
        largest = 0
        for step in self.steps:
            if isinstance(step, Weighted):
                largest = max(largest, entries(step), step.weight.shape[1] * step.groups, len(step.weight))
        self.position = "uint16_t" if largest < 2**16 else "uint32_t"
        for i, step in enumerate(self.steps, start=1):
            self._define(f"layer{i}", step)

    @property
    def gathers(self) -> bool:
        """Whether the weights lie in tables, so that images can be computed in tiles."""
        return self.at_start or not self.seeds

    def _define(self, name: str, step: Step) -> None:
        """Define the tables and the structure of one step."""
        self.tables.append(f"/* {step.name or 'the layer'}: {_sizes(step.in_shape)} to {_sizes(step.out_shape)} */")
        if isinstance(step, Pool):
            fields = [str(step.out_shape[0]), _window(step.window), str(int(step.average)), str(step.divisor)]
        elif isinstance(step, Pixels):
            fields = self._pixels(name, step)
        elif isinstance(step, Pointwise):
            size = math.prod(step.out_shape[1:])
            fields = [str(step.out_shape[0]), str(size), self._finish(name, step.finish)]
        else:
            assert isinstance(step, Weighted)
            fields, order = self._weights(name, step)
            fields.append(self._finish(name, step.finish, order))
            if step.window:
                fields.append(_window(step.window))
            if step.window and not self.gathers:
                fields.append(str(len(step.weight) // step.groups))
            if isinstance(step, PixelLinear):
                fields = [f"{{{', '.join(fields)}}}", f"{{{', '.join(self._pixels(name, step.pixels))}}}"]
        self.tables.append(f"static const struct {function(step)} {name} = {{{', '.join(fields)}}};")

    def _weights(self, name: str, step: Weighted) -> tuple[list[str], list[int] | None]:
        """Define the tables of the weights; return the first fields of the structure, and the order of the units."""
        if not self.gathers:
            return [self._drawn(name, step)], None
        units, table = len(step.weight), gather(step)
        names, order = [self._array(self.position, f"{name}_starts", table.starts)], "0"
        if table.order is not None:
            order = self._array(self.position, f"{name}_order", table.order)
            names.append(order)
        kinds = {"columns": self.position, "weights": "float"}
        if step.name in self.seeds:
            self.tables.append(f"static const struct drawn {name}_drawn = {self._drawn(name, step)};")
            for what, kind in kinds.items():
                count = max(1, len(table.weights))
                self.tables.append(f"static {kind} {name}_{what}[{count}];")
                self.ram += BYTES[kind] * count
            tables = f"{name}_starts, {order}, next_place, {name}_columns, {name}_weights"
            self.draws.append(f"draw(&{name}_drawn, {lanes(step)}, {units // step.groups}, {tables});")
        else:
            for what, kind in kinds.items():
                self._array(kind, f"{name}_{what}", getattr(table, what))
        return [str(units), *names, f"{name}_columns", f"{name}_weights"], table.order

    def _drawn(self, name: str, step: Weighted) -> str:
        seed, (units, columns) = self.seeds[step.name], step.weight.shape
        mask = self._array("uint8_t", f"{name}_mask", seed.mask)
        live = self._array("uint8_t", f"{name}_live", seed.live) if seed.live is not None else "0"
        key = ", ".join(f"UINT64_C(0x{k:016x})" for k in seed.key)
        return f"{{{units}, {columns}, {mask}, {live}, {{{key}}}, {{{_law(self.law, seed)}}}}}"

    def _pixels(self, name: str, step: Pixels) -> list[str]:
        arrays = (self._array("float", f"{name}_pixel_{what}", getattr(step, what)) for what in ("scale", "shift"))
        return [str(step.in_shape[0]), str(math.prod(step.in_shape[1:])), *arrays]

    def _finish(self, name: str, finish: Finish, order: list[int] | None = None) -> str:
        def values(parameters: F32) -> F32:
            return parameters if order is None else parameters[order]

        scale, shift, slopes = (
            self._array("float", f"{name}_{what}", values(parameters)) if parameters is not None and many else "0"
            for what, parameters, many in (
                ("scale", finish.scale, True),
                ("shift", finish.shift, True),
                ("slopes", finish.slope, len(finish.slope) > 1),
            )
        )
        return f"{{{scale}, {shift}, {slopes}, {number(finish.slope[0])}}}"

    def _array(self, kind: str, name: str, values: Iterable[Any]) -> str:
        """Define a constant table and return its name; an empty one gets one element, which C requires."""
        texts = [number(v) if kind == "float" else str(v) for v in values] or ["0"]
        body = ",\n    ".join(", ".join(texts[i : i + 16]) for i in range(0, len(texts), 16))
        self.tables.append(f"static const {kind} {name}[{len(texts)}] = {{\n    {body}}};")
        self.constant += BYTES[kind] * len(texts)
        return name

    def parts(self) -> str:
        """Return the functions that the network needs."""
        used = {function(step) for step in self.steps}
        drawn, fly = bool(self.seeds), not self.gathers
        if "linear_of_pixels" in used:
            used |= {"linear"}
        chosen = {
            "zero": fly or "convolution" in used,
            "finish": True,
            "window": bool(used & {"convolution", "pool"}),
            "shift": "convolution" in used,
            "rice": drawn,
            "philox": drawn,
            self.law: drawn,
            "walk": drawn,
            "draw": self.at_start,
            "pixels": bool(used & {"pixels", "linear_of_pixels"}),
            "to_floats": "pixels" in used,
            "fly_linear" if fly else "linear": "linear" in used,
            "fly_pixels": "linear_of_pixels" in used,
            "tile": not fly and tail(self.steps) < len(self.steps),
            "fly_convolution" if fly else "convolution": "convolution" in used,
            "pool": "pool" in used,
            "pointwise": "pointwise" in used,
        }
        folder = files("crbg.export.c") / "parts"
        return "\n".join((folder / f"{name}.c").read_text() for name, wanted in chosen.items() if wanted)


def function(step: Step) -> str:
    """Return the name of the C function that computes a step."""
    if isinstance(step, Weighted):
        linear = "linear_of_pixels" if isinstance(step, PixelLinear) else "linear"
        return "convolution" if step.window else linear
    return {Pool: "pool", Pixels: "pixels"}.get(type(step), "pointwise")


def tail(steps: list[Step]) -> int:
    """Return the index of the first of the linear layers at the end of the network, which can be computed in tiles."""
    i = len(steps)
    while i and function(steps[i - 1]) == "linear":
        i -= 1
    return i


@dataclass(frozen=True)
class Table:
    """The kept weights of a layer as the functions `linear` and `convolution` read them.

    Attributes:
        starts: Place of the first weight of each slice (of each unit of a convolution) and the end, in multiples of the
            units in a slice.
        order: The units in the order of their places; None in convolutions, where it is the natural one.
        columns: Column of each weight.
        weights: The weights.
    """

    starts: list[int]
    order: list[int] | None
    columns: NDArray[np.int64]
    weights: F32


def lanes(step: Weighted) -> int:
    """Return the number of units in a slice."""
    return 1 if step.window else SLICE


def entries(step: Weighted) -> int:
    """Return the number of weights in the table of a layer, with the padding."""
    counts, size = np.count_nonzero(step.weight, axis=1), lanes(step)
    longest = counts if step.window else np.sort(counts)[::-size]
    return size * int(longest.sum())


def gather(step: Weighted) -> Table:
    """Return the kept weights of a layer, slice by slice; the units of a slice are padded to the longest."""
    counts, size = np.count_nonzero(step.weight, axis=1), lanes(step)
    order = np.arange(len(counts)) if step.window else np.argsort(-counts, kind="stable")
    starts, columns, weights = [0], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for place in range(0, len(order), size):
        units = order[place : place + size]
        column, weight = (
            np.zeros((counts[units].max(), size), np.int64),
            np.zeros((counts[units].max(), size), np.float32),
        )
        for lane, unit in enumerate(units):
            kept = np.flatnonzero(step.weight[unit])
            column[: len(kept), lane], weight[: len(kept), lane] = kept, step.weight[unit][kept]
        columns.append(column.reshape(-1))
        weights.append(weight.reshape(-1))
        starts.append(starts[-1] + len(column))
    return Table(starts, None if step.window else order.tolist(), np.concatenate(columns), np.concatenate(weights))


def number(value: Any) -> str:
    """Return a float32 literal with the fewest digits that give this number."""
    return f"{np.float32(value)!s}f"


def _law(law: str, seed: Seeded) -> str:
    gain = number(seed.gain)
    if law == "uniform":
        assert seed.factor is not None
        factor, exponent = seed.factor
        return f"UINT64_C({factor}), {number(2.0**exponent)}, {gain}"
    if law == "sign":
        return number(np.float32(seed.scale) * np.float32(seed.gain))
    return f"{seed.scale!r}, {gain}"


def _window(window: Window) -> str:
    pairs = (window.inputs, window.outputs, window.kernel, window.stride, window.padding, window.dilation)
    return f"{{{', '.join(f'{{{a}, {b}}}' for a, b in pairs)}}}"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
