import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crbg.errors import CrbgError
from crbg.masks.mask import Mask, shapes_digest

T, F = True, False


def mask_of(**bits):
    return Mask({n: torch.tensor(b) for n, b in bits.items()})


@pytest.fixture
def small():
    return mask_of(a=[[T, F, T], [F, F, F]], b=[T, T])


# Mask ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_a_mask_is_boolean(dtype):
    with pytest.raises(CrbgError, match=r"'w'.*boolean"):
        Mask({"w": torch.ones(2, dtype=dtype)})


def test_an_empty_mask_is_refused():
    with pytest.raises(CrbgError, match="at least one tensor"):
        Mask({})
    with pytest.raises(CrbgError, match="the mask of 'b' is empty"):
        Mask({"a": torch.ones(2, dtype=torch.bool), "b": torch.zeros(0, 3, dtype=torch.bool)})


def test_a_mask_does_not_follow_its_source():
    source = torch.tensor([T, F])
    tensors = {"w": source}
    m = Mask(tensors)
    before = m.digest()
    source[1] = True
    tensors["v"] = source
    assert m.digest() == before
    assert m.kept == 1
    with pytest.raises(TypeError):
        m["w"] = source


def test_a_transposed_source_packs_like_its_copy():
    t = torch.arange(12).reshape(3, 4) % 3 == 0
    assert Mask({"w": t.T}).pack() == Mask({"w": t.T.contiguous()}).pack()


def test_counts(small):
    assert (small.kept, small.total, small.density) == (4, 8, 0.5)
    assert small.layer_kept() == {"a": 2, "b": 2}
    assert small.shapes == {"a": (2, 3), "b": (2,)}
    assert list(small) == ["a", "b"]
    assert len(small) == 2
    assert "4 of 8" in repr(small)


def test_algebra(small):
    other = mask_of(a=[[T, T, F], [F, F, T]], b=[F, T])
    assert small & other == mask_of(a=[[T, F, F], [F, F, F]], b=[F, T])
    assert small | other == mask_of(a=[[T, T, T], [F, F, T]], b=[T, T])
    assert ~small == mask_of(a=[[F, T, F], [T, T, T]], b=[F, F])
    assert ~~small == small
    assert (small & ~small).kept == 0
    assert (small | ~small).kept == small.total
    assert small != ~small
    assert small != "mask"
    assert len({small, ~~small, ~small}) == 2


def test_algebra_of_masks_for_other_tensors_is_refused(small):
    for other in (mask_of(a=[T], b=[T, T]), mask_of(a=[[T, F, T], [F, F, F]])):
        with pytest.raises(CrbgError, match="does not fit"):
            small & other
        with pytest.raises(CrbgError, match="does not fit"):
            small | other


def test_the_digest_sees_name_shape_and_bit(small):
    others = [
        mask_of(a=[[T, F, T], [F, F, F]], c=[T, T]),
        mask_of(a=[[T, F], [T, F], [F, F]], b=[T, T]),
        mask_of(a=[[T, F, T], [F, F, T]], b=[T, T]),
        mask_of(a=[[T, F, T], [F, F, F]], b=[T, T], c=[F]),
    ]
    assert len({m.digest() for m in (small, *others)}) == 5
    assert mask_of(b=[T, T], a=[[T, F, T], [F, F, F]]).digest() == small.digest()


def test_shapes_digest_does_not_confuse_neighbours():
    shapes = [{"a": (1, 2)}, {"a": (12,)}, {"a": (2, 1)}, {"a:1": (2,)}, {"a": (1,), "b": (2,)}]
    assert len({shapes_digest(s) for s in shapes}) == len(shapes)
    assert shapes_digest({"a": (1,), "b": (2,)}) == shapes_digest({"b": (2,), "a": (1,)})


@st.composite
def masks(draw):
    shapes = draw(
        st.dictionaries(
            st.text("abcd.", min_size=1, max_size=4), st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4
        )
    )
    bits = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Mask(
        {
            n: torch.from_numpy(bits.random(s) < 0.5) if s else torch.tensor(bits.random() < 0.5)
            for n, s in shapes.items()
        }
    )


@settings(max_examples=200, deadline=None)
@given(masks())
def test_pack_and_unpack_are_inverse(m):
    data = m.pack()
    assert len(data) == -(-m.total // 8)
    back = Mask.unpack(data, m.shapes)
    assert back == m
    assert all(torch.equal(back[n], m[n]) for n in m)


def test_packed_bits_are_in_the_order_of_the_names():
    m = mask_of(b=[T, T], a=[[T, F, T], [F, F, F]])
    assert m.pack() == bytes([0b10100011])
    assert mask_of(w=[F] * 8 + [T]).pack() == bytes([0, 0b10000000])


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00"])
def test_a_packed_mask_of_wrong_length_is_refused(data):
    with pytest.raises(CrbgError, match="9 weights takes 2 bytes"):
        Mask.unpack(data, {"w": (3, 3)})


@pytest.mark.parametrize("bit", range(7))
def test_padding_must_be_zero(bit):
    with pytest.raises(CrbgError, match="padding"):
        Mask.unpack(bytes([255, 128 | 1 << bit]), {"w": (3, 3)})
    assert Mask.unpack(bytes([255, 128]), {"w": (3, 3)}).kept == 9


def test_check_shapes_names_the_first_that_differs(small):
    small.check_shapes({"b": (2,), "a": (2, 3)})
    with pytest.raises(CrbgError, match=r"'b' is \(2,\) in the mask and \(3,\)"):
        small.check_shapes({"a": (2, 3), "b": (3,), "c": (1,)})
    with pytest.raises(CrbgError, match=r"'a' is \(2, 3\) in the mask and absent"):
        small.check_shapes({"b": (3,)})
    with pytest.raises(CrbgError, match=r"'c' is absent in the mask and \(1,\)"):
        small.check_shapes({"a": (2, 3), "b": (2,), "c": (1,)})
