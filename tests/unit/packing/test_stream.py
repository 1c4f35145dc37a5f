import math
import time
import tracemalloc

import naive_packing
import numpy as np
import pytest
import torch

from crbg import rng
from crbg.errors import CrbgError
from crbg.masks.mask import Mask
from crbg.packing import contexts, pack, stream, unpack

SHAPES = {"b": (7, 30), "a": (40, 3, 3, 3), "c": (5,), "one": (1, 1), "tall": (90, 2)}
SEEDED = contexts.from_seed(3)


def masks(shapes, density, seed=0):
    draws = {n: rng.uniform(math.prod(s), seed, "mask", n).reshape(s) for n, s in shapes.items()}
    return Mask({n: torch.from_numpy(draw < density) for n, draw in draws.items()})


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("given", [SEEDED, contexts.none])
def test_a_packed_mask_is_restored(density, given):
    mask = masks(SHAPES, density)
    assert unpack(pack(mask, given), mask.shapes, given) == mask


def test_a_scalar_has_a_mask_too():
    mask = Mask({"s": torch.tensor(True), "w": torch.tensor([[True, False]])})
    assert unpack(pack(mask, SEEDED), mask.shapes, SEEDED) == mask


@pytest.mark.parametrize("lanes", [1, 3, 40])
def test_a_decoder_written_from_the_specification_agrees(lanes, monkeypatch):
    monkeypatch.setattr(stream, "_lanes", lambda total: lanes)
    monkeypatch.setattr(naive_packing, "lanes", lambda total: lanes)
    shapes = SHAPES | {"wide": (2, 1500)}
    mask = masks(shapes, 0.2)
    lists = {n: SEEDED(n, math.prod(s)).tolist() for n, s in shapes.items()}
    found = naive_packing.unpack(pack(mask, SEEDED), shapes, lists)
    assert found == {n: mask[n].flatten().tolist() for n in shapes}


def test_the_number_of_states_is_that_of_the_specification():
    for total in (1, 2**19 - 1, 2**19, 25_000_000, 2**28):
        assert stream._lanes(total) == naive_packing.lanes(total)
    assert (stream._lanes(266_200), stream._lanes(25_000_000)) == (1, 95)


def test_the_bytes_never_change():
    """Files are read for ever: if this test fails, the format has changed, and it needs a new number."""
    mask = masks(SHAPES, 0.2)
    assert pack(mask, SEEDED).hex() == (
        "d9012b01002934319c2f005d0fd21131637c48aab12a5d371b06d7049fe18a9920069933d0c99da2a779f0588e381e141e95"
        "6997a55ce2cbaf889f9c3bb23e07a54d8a866355aaae9c72bbc68a2c4f85d603fd0c26dd9e2a4b8dfe21854918d5aa46de0f"
        "52dbd47ce561cdb71feb59bbe95dc2a1c42cbfbd387820efc7e07b1f91ad542f7b8163f1b7259975939b243c77de857e04"
    )


def test_nearly_empty_masks_have_a_minimal_length():
    mask = Mask({"w": torch.zeros(100, 2000, dtype=torch.bool)})
    data = pack(mask, SEEDED)
    assert len(data) == -(-200_000 // 1024)
    assert unpack(data, mask.shapes, SEEDED) == mask
    with pytest.raises(CrbgError, match="too few"):
        unpack(data[:-1], mask.shapes, SEEDED)


def test_a_claim_of_many_weights_takes_neither_memory_nor_time():
    start = time.process_time()
    tracemalloc.start()
    for shape in ((2**14, 2**14), (2**20, 2**40), (1, 2**28), (2**28 + 1,), (0, 5), (-4, -5), ()):
        with pytest.raises(CrbgError):
            unpack(b"\x05" * 300, {"w": shape, "v": (3, 3)}, SEEDED)
    with pytest.raises(CrbgError, match="between 1 and 268435456 weights"):
        unpack(bytes(2**18 + 1), {"w": (2**28 + 1,)}, SEEDED)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert time.process_time() - start < 1


@pytest.mark.parametrize("count", [b"\x80" * 20, b"\xff\xff\x7f", b"", b"\x81"])
def test_impossible_numbers_of_kept_weights_are_refused(count):
    with pytest.raises(CrbgError, match=r"kept weights is too large|truncated|too few"):
        unpack(count, {"w": (10, 20)}, SEEDED)


def test_damaged_data_are_refused_or_give_another_mask():
    """Each truncation and each flipped bit gives one CrbgError, or a mask that a digest tells from the original."""
    mask = masks(SHAPES, 0.2)
    data, random = pack(mask, SEEDED), np.random.default_rng(0)
    for size in range(len(data)):
        with pytest.raises(CrbgError):
            unpack(data[:size], mask.shapes, SEEDED)
    with pytest.raises(CrbgError, match="damaged"):
        unpack(data + b"\0", mask.shapes, SEEDED)
    accepted = 0
    for _ in range(300):
        changed = bytearray(data)
        changed[random.integers(len(data))] ^= 1 << random.integers(8)
        try:
            accepted += 1
            assert unpack(bytes(changed), mask.shapes, SEEDED) != mask
        except CrbgError:
            accepted -= 1
    assert accepted < 10
