"""Masks as short byte strings, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from crbg.errors import CrbgError
from crbg.masks.mask import Mask, Shapes
from crbg.packing import model, rans
from crbg.packing.contexts import Contexts

MOST = 1 << 10  # weights per byte; bounds the memory that a small file can claim
LARGEST = 1 << 28  # weights


def pack(mask: Mask, contexts: Contexts) -> bytes:
    """Encode a mask.

    Args:
        mask: The mask, with at most `LARGEST` weights.
        contexts: Contexts of the weights; `unpack` needs the same ones.

    Returns:
        The number of kept weights of each tensor (LEB128, tensors sorted by name), the code of `rans.encode`, and zeros
        up to one byte for `MOST` weights.
    """
    blocks: list[tuple[NDArray[np.uint16], NDArray[np.bool_]]] = []
    head = b""
    for name in sorted(mask):
        bits = mask[name].reshape(-1).numpy()
        kept = int(bits.sum())
        head += _leb128(kept)

        def code(p: model.Ints, position: model.Ints, bits: NDArray[np.bool_] = bits) -> NDArray[np.bool_]:
            blocks.append((p.astype(np.uint16), bits[position]))
            return blocks[-1][1]

        if 0 < kept < bits.size:
            model.walk(_matrix(mask.shapes[name]), contexts(name, bits.size), kept, code)
    data = head + rans.encode(blocks, _lanes(mask.total))
    return data.ljust(_shortest(mask.total), b"\0")


def unpack(data: bytes, shapes: Shapes, contexts: Contexts) -> Mask:
    """Decode a mask with tensors of these shapes.

    Raises:
        CrbgError: the data are truncated or damaged, or the shapes are too large.
    """
    total = sum(math.prod(s) for s in shapes.values())
    if not shapes or min(min(s, default=1) for s in shapes.values()) < 1 or total > LARGEST:
        raise CrbgError(f"a packed mask has between 1 and {LARGEST} weights")
    if len(data) < _shortest(total):
        raise CrbgError(f"{len(data)} bytes are too few for a packed mask of {total} weights")
    source = iter(data)
    kept = {name: _read_leb128(source, math.prod(shapes[name])) for name in sorted(shapes)}
    rest = bytes(source)
    decoder = rans.Decoder(rest, _lanes(total))
    tensors = {}
    for name, count in kept.items():
        bits = np.full(math.prod(shapes[name]), count > 0)

        def code(p: model.Ints, position: model.Ints, bits: NDArray[np.bool_] = bits) -> NDArray[np.bool_]:
            bits[position] = found = decoder.decode(p)
            return found

        if 0 < count < bits.size:
            model.walk(_matrix(shapes[name]), contexts(name, bits.size), count, code)
        tensors[name] = torch.from_numpy(bits).reshape(shapes[name])
    used = len(data) - len(rest) + decoder.used
    if not decoder.finished or data[used:] != bytes(max(0, _shortest(total) - used)):
        raise CrbgError("the packed mask is damaged")
    return Mask(tensors)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the size of a tensor as a matrix, with one row for each index of the first axis."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _lanes(total: int) -> int:
    return min(max(total >> 18, 1), 256)


def _shortest(total: int) -> int:
    return -(-total // MOST)


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_leb128(source: Iterator[int], largest: int) -> int:
    value = shift = 0
    for byte in source:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 and value <= largest:
            return value
        if value > largest or shift > 63:
            raise CrbgError("the packed mask is damaged: a number of kept weights is too large")
    raise CrbgError("the packed mask is truncated")
