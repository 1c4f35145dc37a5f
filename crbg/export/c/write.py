"""Write a network as a C program: `model.c` and `model.h`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from crbg import __version__
from crbg.errors import CrbgError, suggest
from crbg.export.c import emit
from crbg.export.c.emit import Program
from crbg.export.c.functions import batch_body, predict_body
from crbg.export.c.live import compact, prune_dead
from crbg.export.c.network import PixelLinear, Pixels, Shape, Step, Weighted, read
from crbg.export.c.seeded import seeded
from crbg.export.inputs import copied
from crbg.gates.attach import bake
from crbg.storage.atomic import write_text
from crbg.ticket import Ticket

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel
DRAWS = ("stored", "start", "fly")
LARGEST = 2**22  # weights in the tables of a program; compilers need minutes for larger ones


def to_c(
    source: nn.Module | Ticket,
    out: Path | str,
    draw: str = "stored",
    *,
    model: nn.Module | None = None,
    mask: Mapping[str, Tensor] | None = None,
    in_shape: Shape | None = None,
    pixels: Normalisation | None = None,
    name: str = "model",
) -> dict[str, Any]:
    """Write a sparse network as a C99 program without dependencies: NAME.c and NAME.h.

    The program needs no memory allocation and no library, only `<stdint.h>` and `<stddef.h>`. Batch norm is folded, and
    dead units are left out. `NAME_predict` computes the outputs of one input, and NAME.h documents all functions.

    Examples:
        >>> from torch import nn
        >>> from crbg.export import to_c
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> to_c(net, "program", in_shape=(4,))["weights"]
        48

    Args:
        source: A ticket, or a network whose pruned weights are 0. The network is not changed.
        out: The folder for the two files; files of the same names are replaced.
        draw: Where the weights come from. `stored`: from tables, for any network. `start`: `NAME_init` draws them from
            the ticket's seed into RAM. `fly`: each is drawn when it is used, which needs the least memory and the most
            time. Drawn weights equal Python's bit by bit.
        model: For a ticket of a network outside the registry: the network, as for `Ticket.apply`.
        mask: For a network: factors on its weights, as for `crbg.bake`.
        in_shape: Shape of one input without the batch axis; by default that of the ticket.
        pixels: For images as bytes: the mean and the standard deviation of each channel. The C functions then take
            `uint8_t` pixels, and the network gets (pixel / 255 - mean) / std, as in training. By default, they take
            floats.
        name: Prefix of the C functions, and name of the files.

    Returns:
        The number of weights in the program, the number of hidden units that were left out, and the sizes of the
        constant tables, of the tables in RAM and of the work memory for one input.

    Raises:
        CrbgError: a layer is not supported, the weights do not follow from a seed, no path leads from the input to the
            output, or an argument is not valid.
    """
    if draw not in DRAWS:
        raise CrbgError(f"unknown value {draw!r} of `draw`: {suggest(draw, DRAWS)}")
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise CrbgError(f"name {name!r} must be a C identifier that starts with a letter, for example model")
    if isinstance(in_shape, int):
        raise CrbgError(f"in_shape must be a tuple, for example ({in_shape},), not {in_shape}")
    if in_shape and not all(isinstance(size, int) and size > 0 for size in in_shape):
        raise CrbgError(f"in_shape must contain whole numbers above 0, without the batch axis, not {tuple(in_shape)}")
    if pixels is not None and not (isinstance(pixels, tuple | list) and len(pixels) == 2):
        raise CrbgError(f"pixels must be a pair (mean, std) with one value per channel each, not {pixels!r}")
    ticket = source if isinstance(source, Ticket) else None
    if ticket is None and draw != "stored":
        raise CrbgError(f"draw={draw!r} needs a ticket with a seed; pass the ticket, or use draw='stored'")
    shape = in_shape or (ticket.in_shape if ticket else ())
    if not shape:
        raise CrbgError("in_shape is missing; pass the shape of one input, for example in_shape=(1, 28, 28)")
    steps = read(_network(source, model, mask), tuple(shape))
    alive = prune_dead(steps)
    dropped = sum(int((~flags).sum()) for step, flags in zip(steps, alive, strict=True) if isinstance(step, Weighted))
    if draw == "stored":
        steps = compact(steps, alive)
    if pixels is not None:
        steps = _of_pixels(steps, pixels, tuple(shape), fused=draw == "fly")
    program = _drawn(ticket, steps, draw) if ticket and draw != "stored" else _stored(steps)
    predict, work = predict_body(program.steps)
    batch, batch_work = batch_body(program.steps, name) if program.gathers else ([], 0)
    folder = Path(out).expanduser()
    write_text(folder / f"{name}.h", _header(program, name, shape, work, batch_work))
    write_text(folder / f"{name}.c", _code(program, name, predict, batch))
    return {
        "draw": draw,
        "weights": _kept(program.steps),
        "units dropped": dropped,
        "constant tables, bytes": program.constant,
        "tables in RAM, bytes": program.ram,
        "work memory, bytes": 4 * work,
    }


def _network(source: nn.Module | Ticket, model: nn.Module | None, mask: Mapping[str, Tensor] | None) -> nn.Module:
    """Return a copy of the sparse network on the CPU."""
    if isinstance(source, Ticket):
        if mask is not None:
            raise CrbgError("a ticket has its own mask; leave the argument mask out")
        if model is None and not source.model_name:
            raise CrbgError("the ticket belongs to a model outside crbg.models; pass this model with `model=`")
        return source.model() if model is None else source.apply(copied(model))
    net = copied(source)
    return net if mask is None else bake(net, {name: factors.cpu() for name, factors in mask.items()})


def _of_pixels(steps: list[Step], pixels: Normalisation, shape: Shape, fused: bool) -> list[Step]:
    """Put the conversion of pixels before the first step, or into it if it is a linear layer and `fused` is set."""
    mean, std = (np.asarray(values, np.float64).reshape(-1) for values in pixels)
    channels = shape[0] if len(shape) == 3 else 1
    if len(mean) != channels or len(std) != channels or not (std > 0).all():
        raise CrbgError(f"pixels needs a mean and a positive standard deviation for each of {channels} channels")
    flat = (channels, math.prod(shape) // channels)
    step = Pixels("pixels", flat, flat, (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32))
    first = steps[0]
    if fused and isinstance(first, Weighted) and not first.window:
        return [PixelLinear(**vars(first), pixels=step), *steps[1:]]
    return [step, *steps]


def _stored(steps: list[Step]) -> Program:
    kept = sum(emit.entries(step) for step in steps if isinstance(step, Weighted))
    if kept > LARGEST:
        raise CrbgError(f"the program would have tables of {kept} weights, more than {LARGEST}; choose a lower density")
    return Program(steps, {}, "", at_start=False)


def _drawn(ticket: Ticket, steps: list[Step], draw: str) -> Program:
    seeds = seeded(ticket, steps)
    law = {"signed_constant": "sign", "kaiming_normal": "normal"}.get(ticket.law, "uniform")
    if law == "uniform" and any(seed.factor is None for seed in seeds.values()):
        law = "uniform_double"
    return Program(steps, seeds, law, at_start=draw == "start")


def _header(program: Program, name: str, shape: Shape, work: int, batch_work: int) -> str:
    upper = name.upper()
    macros = [
        ("INPUTS", math.prod(shape), f"values of one input: {' x '.join(map(str, shape))}"),
        ("OUTPUTS", program.steps[-1].outputs, "values of one output"),
        ("WORK", work, f"floats of work memory for {name}_predict"),
    ]
    functions = [
        "/* Compute the output of one input. The caller lends the work memory; its contents do not matter. */",
        f"{_signature(program, name, 'predict')};",
    ]
    if program.at_start:
        functions[:0] = [
            "/* Draw the weights. Call this once, before all other functions. */",
            f"void {name}_init(void);",
        ]
    if program.gathers:
        macros.append(("BATCH_WORK", batch_work, f"floats of work memory for {name}_predict_batch"))
        functions += [
            "/* Compute the outputs of `count` inputs, which lie one after the other. Fast with gcc and clang. */",
            f"{_signature(program, name, 'predict_batch')};",
        ]
    lines = [
        _title(program),
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        *(f"#define {upper}_{key} {value} /* {about} */" for key, value, about in macros),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        *functions,
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
    ]
    return "\n".join([*lines, ""])


def _code(program: Program, name: str, predict: list[str], batch: list[str]) -> str:
    lines = [_title(program), f'#include "{name}.h"', ""]
    if program.gathers:
        lines += [f"typedef {program.position} position; /* in the tables of weights */", ""]
    lines += [program.parts(), *program.tables, ""]
    if program.at_start:
        most = max(len(step.weight) for step in program.steps if isinstance(step, Weighted))
        lines += [f"static position next_place[{most}];", ""]
        lines += _function(f"void {name}_init(void)", program.draws)
    lines += _function(_signature(program, name, "predict"), predict)
    if program.gathers:
        lines += _function(_signature(program, name, "predict_batch"), batch)
    return "\n".join(lines)


def _title(program: Program) -> str:
    return f"/* A sparse network of {_kept(program.steps)} weights, written by crbg {__version__}. */"


def _signature(program: Program, name: str, what: str) -> str:
    kind = "uint8_t" if isinstance(program.steps[0], Pixels | PixelLinear) else "float"
    count = "size_t count, " if what == "predict_batch" else ""
    return f"void {name}_{what}(const {kind} *input, float *output, {count}float *work)"


def _function(head: str, statements: list[str]) -> list[str]:
    return [head, "{", *(line if line.startswith("#") else f"    {line}" for line in statements), "}", ""]


def _kept(steps: list[Step]) -> int:
    return sum(int((step.weight != 0).sum()) for step in steps if isinstance(step, Weighted))
