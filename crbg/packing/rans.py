"""An entropy coder for bits with given probabilities: asymmetric numeral systems (Duda, 2013) with interleaved states.

This is the range variant (rANS) with 16-bit probabilities. A state x is an integer with 2^24 <= x < 2^40. A bit has the
probability f / 2^16, and its interval starts at s: 0 for a 1, and f of the 1 for a 0. It changes the state as follows:

    encode: if x >= f 2^24, write the word x mod 2^16 and set x = floor(x / 2^16); then
            x = floor(x / f) 2^16 + (x mod f) + s
    decode: the bit is "kept" if x mod 2^16 < probability; then
            x = f floor(x / 2^16) + (x mod 2^16) - s; if x < 2^24, set x = 2^16 x + next word

Encoding goes through the bits in reverse. Bit q of a block uses state q mod (number of states), so that NumPy decodes
as many bits at a time as there are states (Giesen, "Interleaved entropy coders", 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crbg.errors import CrbgError

Ints = NDArray[np.int64]
Bits = NDArray[np.bool_]

LOWEST = 1 << 24
STATE = 5  # bytes of a state
VECTORS = 32  # from this number of states on, NumPy is faster than plain Python


def encode(blocks: Sequence[tuple[NDArray[np.uint16], Bits]], lanes: int) -> bytes:
    """Encode blocks of bits.

    Args:
        blocks: For each block, the probabilities that its bits are 1, in units of 1 / 65536, and the bits.
        lanes: Number of states.

    Returns:
        The states (five bytes each, little-endian), then the words (two bytes each, little-endian).
    """
    step = _encode_vector if lanes >= VECTORS else _encode_scalar
    states, words = np.full(lanes, LOWEST, np.int64), []
    for p, bits in reversed(blocks):
        frequency = np.where(bits, p, 65536 - p.astype(np.int64))
        words.append(step(states, frequency, np.where(bits, 0, p.astype(np.int64))))
    head = b"".join(int(x).to_bytes(STATE, "little") for x in states)
    return head + b"".join(w.astype("<u2").tobytes() for w in reversed(words))


def _encode_scalar(states: Ints, frequency: Ints, start: Ints) -> Ints:
    lanes, words, x = len(states), [], states.tolist()
    f, s = frequency.tolist(), start.tolist()
    for q in range(len(f) - 1, -1, -1):
        lane = q % lanes
        state = x[lane]
        if state >= f[q] << 24:
            words.append(state & 0xFFFF)
            state >>= 16
        x[lane] = (state // f[q] << 16) + state % f[q] + s[q]
    states[:] = x
    return np.array(words[::-1], np.int64)


def _encode_vector(states: Ints, frequency: Ints, start: Ints) -> Ints:
    words = []
    for first in range((len(frequency) - 1) // len(states) * len(states), -1, -len(states)):
        f, s = (a[first : first + len(states)] for a in (frequency, start))
        x = states[: len(f)]
        full = x >= f << 24
        words.append(x[full] & 0xFFFF)
        x = np.where(full, x >> 16, x)
        whole, rest = np.divmod(x, f)
        states[: len(f)] = (whole << 16) + rest + s
    return np.concatenate(words[::-1])


class Decoder:
    """Decode blocks of bits in the order in which they were encoded.

    Args:
        data: Result of `encode`, which may be followed by other bytes.
        lanes: Number of states.

    Raises:
        CrbgError: the data are too short for the states.
    """

    def __init__(self, data: bytes, lanes: int) -> None:
        if len(data) < lanes * STATE:
            raise CrbgError("the packed mask is truncated")
        head = data[: lanes * STATE]
        self.states = np.array(
            [int.from_bytes(head[i : i + STATE], "little") for i in range(0, len(head), STATE)], np.int64
        )
        self.words = np.frombuffer(data, "<u2", (len(data) - len(head)) // 2, len(head)).astype(np.int64)
        self.position = 0

    @property
    def used(self) -> int:
        """Number of bytes that were decoded."""
        return len(self.states) * STATE + 2 * self.position

    @property
    def finished(self) -> bool:
        """Whether all states have the values with which encoding started."""
        return bool((self.states == LOWEST).all())

    def decode(self, p: Ints) -> Bits:
        """Decode one block.

        Args:
            p: Probabilities that the bits are 1, in units of 1 / 65536.

        Raises:
            CrbgError: the data end before the block.
        """
        return self._vector(p) if len(self.states) >= VECTORS else self._scalar(p)

    def _scalar(self, p: Ints) -> Bits:
        lanes, x, bits = len(self.states), self.states.tolist(), []
        words, position = self.words, self.position
        for q, kept in enumerate(p.tolist()):
            state = x[q % lanes]
            slot = state & 0xFFFF
            bit = slot < kept
            state = kept * (state >> 16) + slot if bit else (65536 - kept) * (state >> 16) + slot - kept
            if state < LOWEST:
                if position >= len(words):
                    raise CrbgError("the packed mask is truncated")
                state = state << 16 | int(words[position])
                position += 1
            x[q % lanes] = state
            bits.append(bit)
        self.states[:], self.position = x, position
        return np.array(bits, bool)

    def _vector(self, p: Ints) -> Bits:
        bits = np.empty(len(p), bool)
        for first in range(0, len(p), len(self.states)):
            kept = p[first : first + len(self.states)]
            x = self.states[: len(kept)]
            slot = x & 0xFFFF
            bit = bits[first : first + len(kept)] = slot < kept
            x = np.where(bit, kept, 65536 - kept) * (x >> 16) + slot - np.where(bit, 0, kept)
            short = np.flatnonzero(x < LOWEST)
            if self.position + len(short) > len(self.words):
                raise CrbgError("the packed mask is truncated")
            x[short] = x[short] << 16 | self.words[self.position : self.position + len(short)]
            self.position += len(short)
            self.states[: len(kept)] = x
        return bits
