"""The bodies of the public C functions: which step reads and writes which part of the work memory."""

from __future__ import annotations

import math

from crbg.export.c.emit import TILE, function, tail
from crbg.export.c.network import Pointwise, Step


def predict_body(steps: list[Step]) -> tuple[list[str], int]:
    """Return the statements that compute one input, and the number of floats of work memory."""
    calls, work = _calls(steps, "input", "output", "work")
    return calls if work else ["(void)work;", *calls], max(work, 1)


def batch_body(steps: list[Step], name: str) -> tuple[list[str], int]:
    """Return the statements that compute a batch, and the number of floats of work memory.

    The linear layers at the end of the network are computed in tiles. The work memory has the tiles, the features of
    each image of a tile, and the work memory of the layers before.
    """
    upper, start = name.upper(), tail(steps)
    _, work = predict_body(steps)
    rest = [
        f"for (; count; count--, input += {upper}_INPUTS, output += {upper}_OUTPUTS)",
        f"    {name}_predict(input, output, work);",
    ]
    if start == len(steps):
        return rest, work
    features = math.prod(steps[start].in_shape)
    sizes = [features, *(step.outputs for step in steps[start:])]
    offsets, size = _two_ends(sizes)
    tiles = [f"tile + {offset}" if offset else "tile" for offset in offsets]
    before, before_work = _calls(
        steps[:start], f"input + k * {upper}_INPUTS", f"features + k * {features}", f"features + {TILE * features}"
    )
    calls = [f"linear_tile(&layer{start + i + 1}, {tiles[i]}, {tiles[i + 1]});" for i in range(len(steps) - start)]
    loop = [
        "    for (size_t k = 0; k < images; k++) {",
        *(f"        {call}" for call in before),
        "    }",
    ]
    body = [
        "#if defined(__GNUC__)",
        "lanes *tile = (lanes *)(((uintptr_t)work + sizeof(lanes) - 1) & ~(uintptr_t)(sizeof(lanes) - 1));",
        *([f"float *features = (float *)(tile + {size});"] if before else []),
        "while (count > 1) {",
        "    size_t images = count < TILE ? count : TILE;",
        *(loop if before else []),
        f"    into_tile({'features' if before else 'input'}, {features}, images, tile);",
        *(f"    {call}" for call in calls),
        "    for (size_t k = 0; k < images; k++)",
        f"        for (size_t j = 0; j < {upper}_OUTPUTS; j++)",
        f"            *output++ = ({tiles[-1]})[j][k];",
        f"    input += images * {upper}_INPUTS;",
        "    count -= images;",
        "}",
        "#endif",
        *rest,
    ]
    return body, max(work, TILE - 1 + TILE * size + (TILE * features if before else 0) + before_work)


def _calls(steps: list[Step], first: str, last: str, work: str) -> tuple[list[str], int]:
    """Return a call for each step, and the size of the work memory for what lies between the steps.

    A pointwise step works in place.
    """
    moves = [i for i, step in enumerate(steps[:-1]) if i == 0 or not isinstance(step, Pointwise)]
    offsets, size = _two_ends([steps[i].outputs for i in moves])
    where = {i: f"{work} + {offset}" if offset else work for i, offset in zip(moves, offsets, strict=True)}
    calls, here = [], first
    for i, step in enumerate(steps):
        there = last if i == len(steps) - 1 else where.get(i, here)
        calls.append(f"{function(step)}(&layer{i + 1}, {here}, {there});")
        here = there
    return calls, size


def _two_ends(sizes: list[int]) -> tuple[list[int], int]:
    """Place arrays at the two ends of a memory in turn; return their offsets and the size of the memory."""
    size = max((sum(sizes[i : i + 2]) for i in range(len(sizes))), default=0)
    return [0 if i % 2 == 0 else size - n for i, n in enumerate(sizes)], size
