import ctypes
from importlib.resources import files

import numpy as np
import pytest
from c_programs import build, drawn, functions_of, needs_compiler
from torch import nn

from crbg import CrbgError, rng
from crbg.export.c import seeded

PARTS = files("crbg.export.c") / "parts"


def decoded(mask, live, rows, columns):
    """Decode a mask as the comments in the C code state, in the plainest way."""
    bits = "".join(f"{byte:08b}" for byte in mask)
    listed = range(columns) if live is None else [j for j in range(columns) if live[j // 8] >> j % 8 & 1]
    kept, place, at, mean = np.zeros((rows, columns), bool), -1, 0, 64
    while True:
        k = next(k for k in range(32) if mean <= 12 << k)
        quotient = bits.index("0", at) - at
        at += quotient + 1
        gap = (quotient << k) + int(bits[at : at + k] or "0", 2)
        at, mean, place = at + k, mean + gap - mean // 8, place + gap + 1
        if place >= rows * len(listed):
            assert (len(bits) - at, place) < (8, rows * len(listed) + 1)
            return kept
        kept[place % rows, listed[place // rows]] = True


@pytest.mark.parametrize("density", [0.0, 0.002, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (50, 9)])
def test_the_code_of_a_mask_can_be_decoded(shape, density):
    kept = np.random.default_rng(1).random(shape) < density
    assert np.array_equal(decoded(*seeded.encode(kept), *shape), kept)


def test_columns_without_weights_are_listed_if_that_saves_bytes():
    kept = np.zeros((20, 400), bool)
    kept[:, ::50] = np.random.default_rng(0).random((20, 8)) < 0.5
    mask, live = seeded.encode(kept)
    assert len(live) == 50
    assert len(mask) + 50 < len(seeded._rice(kept.T.reshape(-1)))
    assert seeded.encode(np.random.default_rng(0).random((20, 400)) < 0.5)[1] is None


def test_the_code_is_near_the_entropy():
    kept = np.random.default_rng(0).random((300, 400)) < 0.02
    entropy = -120000 * (0.02 * np.log2(0.02) + 0.98 * np.log2(0.98)) / 8
    assert len(seeded.encode(kept)[0]) < 1.06 * entropy


@needs_compiler
def test_the_random_integers_equal_those_of_numpy(tmp_path):
    code = "#include <stdint.h>\n" + (PARTS / "philox.c").read_text()
    code += "void integers(const uint64_t *key, uint32_t block, uint64_t *out);\n"
    code += "void integers(const uint64_t *key, uint32_t block, uint64_t *out)\n{\n    philox(key, block, out);\n}\n"
    library, out = functions_of(tmp_path, code), np.zeros((50, 4), np.uint64)
    key = np.array(rng.stream(4, "init", "fc1.weight").state["state"]["key"], np.uint64)
    for block in range(50):
        library.integers(ctypes.c_void_p(key.ctypes.data), block, ctypes.c_void_p(out[block:].ctypes.data))
    assert np.array_equal(out.reshape(-1), rng.integers(200, 4, "init", "fc1.weight"))


@needs_compiler
def test_normal_numbers_are_exact_to_the_end_of_the_tails(tmp_path):
    code = "#include <stdint.h>\n" + (PARTS / "normal.c").read_text()
    code += "double normal(uint64_t random);\ndouble normal(uint64_t random)\n{\n    (void)scaled;\n"
    code += "    return inverse_normal(random);\n}\n"
    normal = functions_of(tmp_path, code).normal
    normal.restype, normal.argtypes = ctypes.c_double, [ctypes.c_uint64]
    tails = [1 << k for k in range(12, 64)]
    integers = np.array([0, *tails, *(2**64 - t for t in tails), *rng.integers(3000, 0, "x")], np.uint64)
    u = ((integers >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    expected = rng.inverse_normal_cdf(u)
    assert np.array_equal(np.array([normal(int(i)) for i in integers]), expected)
    assert expected.min() < -8  # the last branch of the algorithm begins at 7.1


@needs_compiler
def test_uniform_weights_are_exact_where_integers_do_not_suffice(tmp_path, monkeypatch):
    """With a factor of 24 bits, the integer route rounds some weights differently, so the program uses double."""
    monkeypatch.setattr(seeded, "FACTOR_BITS", 24)
    model = nn.Sequential(nn.Linear(40, 50, bias=False))
    ticket = drawn(model, "uniform", scale=0.1)
    program = build(tmp_path, ticket, "fly", model=model, in_shape=(40,))
    assert "double scale" in (tmp_path / "model.c").read_text()
    weights = program.predict(np.eye(40, dtype=np.float32)).T
    assert np.array_equal(weights, ticket.apply(model)[0].weight.detach().numpy())


def test_uniform_weights_of_recorded_scales_are_drawn_in_integers():
    for scale in (0.07, 0.15, 0.25, 0.35):
        unit = 2.0 * rng.uniform(6000, 0, "init", "fc1.weight") - 1.0
        factor, exponent = seeded._factor(unit, scale)
        assert factor.bit_length() <= 41
        assert factor * 2.0**exponent == pytest.approx(scale * 2.0**-23, rel=1e-12)


def test_other_weights_than_those_of_the_seed_are_refused():
    from crbg.export.c.network import read

    model = nn.Sequential(nn.Linear(5, 4))
    ticket = drawn(model, "uniform", density=1.0)
    steps = read(model, (5,))
    steps[0].weight[1, 2] += 1e-3
    with pytest.raises(CrbgError, match=r"0\.weight are not those that the ticket's seed gives; use draw='stored'"):
        seeded.seeded(ticket, steps)


def test_layers_with_too_many_weights_are_refused(monkeypatch):
    from crbg.export.c.network import read

    monkeypatch.setattr(seeded, "LARGEST", 19)
    model = nn.Sequential(nn.Linear(5, 4))
    with pytest.raises(CrbgError, match=r"0\.weight has 20 weights, more than 19"):
        seeded.seeded(drawn(model, "uniform"), read(model, (5,)))
