"""Weights that the C program draws from a seed: keys, laws and the compressed mask.

The C code uses the arithmetic of `crbg.rng`, so it draws the same weights bit by bit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crbg import rng
from crbg.errors import CrbgError
from crbg.export.c.network import Step, Weighted
from crbg.models.initial_weights import law_scale, unit_draw
from crbg.ticket import Ticket

LARGEST = 2**26  # weights of a layer; the running mean of the mask's code must fit into 32 bits
FACTOR_BITS = 41


@dataclass(frozen=True)
class Seeded:
    """The weights of one layer.

    Attributes:
        key: Key of the layer's Philox stream, two 64-bit integers.
        scale: Factor on the unscaled weights.
        gain: Factor on the scaled weights, which are float32 numbers then.
        mask: Rice codes of the gaps between kept weights, column by column.
        live: One bit per column, lowest bit first: the column has kept weights. None if all columns do.
        factor: For uniform weights that can be drawn in integers, the `factor` and the exponent of `unit`.
    """

    key: tuple[int, int]
    scale: float
    gain: float
    mask: bytes
    live: bytes | None
    factor: tuple[int, int] | None


def seeded(ticket: Ticket, steps: list[Step]) -> dict[str, Seeded]:
    """Return how to draw the weights of each layer, by the name of its step.

    Raises:
        CrbgError: the ticket's weights do not come from a seed alone, or the network has other weights.
    """
    if ticket.law not in rng.LAWS:
        raise CrbgError(
            f"the initial weights of this ticket do not come from a seed (law={ticket.law!r}); use draw='stored'"
        )
    if ticket.factors:
        raise CrbgError("this ticket has signs or integer factors, which the C program cannot draw; use draw='stored'")
    found = {}
    for step in steps:
        if isinstance(step, Weighted):
            found[step.name] = _of_layer(ticket, step)
    return found


def _of_layer(ticket: Ticket, step: Weighted) -> Seeded:
    name, kept = f"{step.name}.weight".lstrip("."), step.weight != 0
    if step.weight.size > LARGEST:
        raise CrbgError(f"{name} has {step.weight.size} weights, more than {LARGEST}; use draw='stored'")
    unit = unit_draw(name, step.weight.shape, ticket.law, ticket.seed)
    scale, gain = law_scale(step.weight.shape, ticket.law, ticket.scale), float(ticket.gain.get(name, 1.0))
    drawn = (unit * scale).astype(np.float32) * np.float32(gain)
    if not np.array_equal(drawn[kept], step.weight[kept]):
        raise CrbgError(f"the weights of {name} are not those that the ticket's seed gives; use draw='stored'")
    factor = _factor(unit[kept], scale) if ticket.law.startswith("uniform") else None
    digest = hashlib.sha256(f"{ticket.seed}/init/{name}".encode()).digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    mask, live = encode(kept)
    return Seeded(key, scale, gain, mask, live, factor)


def _factor(unit: NDArray[np.float64], scale: float) -> tuple[int, int] | None:
    """Return (f, e) such that |m| f 2^e, rounded to float32, is the weight for every m = unit * 2^23, or None.

    Python rounds the product of m and `scale` to double first, which gives another float32 number in rare cases.
    """
    exponent = math.frexp(scale)[1] - FACTOR_BITS
    factor = round(math.ldexp(scale, -exponent))
    m = np.abs(unit * 2.0**23).astype(np.uint64)
    product, shift = m * np.uint64(factor), np.zeros(m.shape, np.int64)
    while (large := product >> np.uint64(32) != 0).any():  # as in the C code; the last bit is sticky
        product = np.where(large, product >> np.uint64(1) | product & np.uint64(1), product)
        shift += large
    values = np.ldexp(product.astype(np.float32), shift + exponent - 23).astype(np.float32)
    exact = np.array_equal(values, np.abs(unit * scale).astype(np.float32))
    return (factor, exponent - 23) if exact and factor < 2**FACTOR_BITS and exponent > -100 else None


def encode(kept: NDArray[np.bool_]) -> tuple[bytes, bytes | None]:
    """Compress the mask of a layer, (units, columns), column by column.

    The gap before each kept weight is coded with the adaptive Rice code of `parts/rice.c`; a last gap leads past the
    end. Columns without kept weights are left out if their list takes less space.

    Returns:
        The codes, and the list of columns with kept weights, or None.
    """
    live = kept.any(0)
    full, short = _rice(kept.T.reshape(-1)), _rice(kept[:, live].T.reshape(-1))
    listed = np.packbits(live, bitorder="little").tobytes()
    return (short, listed) if len(short) + len(listed) < len(full) else (full, None)


def _rice(flat: NDArray[np.bool_]) -> bytes:
    gaps = np.diff(np.flatnonzero(np.concatenate(([True], flat, [True])))) - 1
    mean, bits = 64, []
    for gap in map(int, gaps):
        k = 0
        while 12 << k < mean:
            k += 1
        bits.append("1" * (gap >> k) + "0" + (format(gap & ((1 << k) - 1), f"0{k}b") if k else ""))
        mean += gap - (mean >> 3)
    text = "".join(bits)
    padded = text + "0" * (-len(text) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big")
