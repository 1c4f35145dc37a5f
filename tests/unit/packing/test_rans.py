import math

import numpy as np
import pytest

from crbg.errors import CrbgError
from crbg.packing import rans


def blocks_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    p = [rng.integers(1, 65536, n).astype(np.uint16) for n in sizes]
    return [(q, rng.random(len(q)) * 65536 < q) for q in p]


SIZES = [1, 5, 1024, 100, 31, 32, 33, 64, 1]


@pytest.mark.parametrize("lanes", [1, 2, 31, 32, 40, 256])
def test_decoding_returns_the_bits(lanes):
    blocks = blocks_of(SIZES)
    data = rans.encode(blocks, lanes)
    decoder = rans.Decoder(data + b"more", lanes)
    for p, bits in blocks:
        assert decoder.decode(p.astype(np.int64)).tolist() == bits.tolist()
    assert decoder.finished
    assert decoder.used == len(data)


@pytest.mark.parametrize("lanes", [1, 40])
def test_plain_python_and_numpy_write_and_read_the_same_bytes(lanes, monkeypatch):
    found = []
    for vectors in (0, 1000):
        monkeypatch.setattr(rans, "VECTORS", vectors)
        data = rans.encode(blocks_of(SIZES), lanes)
        decoder = rans.Decoder(data, lanes)
        found.append((data, [decoder.decode(p.astype(np.int64)).tolist() for p, _ in blocks_of(SIZES)], decoder.used))
    assert found[0] == found[1]


@pytest.mark.parametrize("p", [1, 300, 65535])
def test_the_code_is_as_short_as_the_probabilities_allow(p):
    bits = np.random.default_rng(0).random(50_000) * 65536 < p
    data = rans.encode([(np.full(len(bits), p, np.uint16), bits)], 1)
    ideal = -sum(math.log2((p if b else 65536 - p) / 65536) for b in bits) / 8
    assert ideal < len(data) < 1.001 * ideal + 8


@pytest.mark.parametrize("lanes", [1, 40])
def test_truncated_data_are_refused(lanes):
    blocks = blocks_of([2000])
    data = rans.encode(blocks, lanes)
    for size in (0, 5 * lanes - 1, 5 * lanes, len(data) // 2, len(data) - 2):
        with pytest.raises(CrbgError, match="truncated"):
            rans.Decoder(data[:size], lanes).decode(blocks[0][0].astype(np.int64))


def test_other_probabilities_leave_other_states():
    (p, _), *_ = blocks = blocks_of([2000])
    decoder = rans.Decoder(rans.encode(blocks, 1) + bytes(10_000), 1)
    decoder.decode(np.maximum(p.astype(np.int64) - 1, 1))
    assert not decoder.finished
