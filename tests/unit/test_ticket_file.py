"""Packed ticket files, files of every format, and files from strangers."""

import dataclasses
import json
import math
import time
import tracemalloc

import naive_packing
import numpy as np
import pytest
import torch
from networks import random_mask, same_bytes, tiny
from paths import ROOT
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from crbg import Mask, Ticket, models, packing
from crbg.errors import CrbgError
from crbg.export.write import sizes
from crbg.gates.attach import weights
from crbg.masks.mask import shapes_digest
from crbg.models.initial_weights import initialise, tensor_digest
from crbg.ticket_file import read_header

GOLDEN = ROOT / "tests/golden/tickets"
RECORDED = ROOT / "results/recorded/tickets"


def header_of(path):
    return read_header(path.read_bytes())


def edited(data, **fields):
    """Return the bytes of a ticket file with changed header fields; `...` removes a field."""
    header = read_header(data) | fields
    header = {k: v for k, v in header.items() if v is not ...}
    return save_tensors(load_tensors(data), {"crbg": json.dumps(header)})


def load_bytes(data, tmp_path, model=None):
    (tmp_path / "edited").write_bytes(data)
    return Ticket.load(tmp_path / "edited", model)


# --- formats ---


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_file_of_each_format_is_read_for_ever(number, tmp_path):
    """The files were written when their format was introduced, and never change."""
    path = GOLDEN / f"format{number}.safetensors"
    ticket = Ticket.load(path)
    assert header_of(path)["format"] == number
    assert ticket.mask.digest() == "8a0ca5486311f7bef1244474686cbc94dc8b5d7fecec1adfde7ee26f60167860"
    assert ticket.gain == ({} if number == 1 else {"fc1.weight": 2.0})
    weight = ticket.model().fc1.weight
    assert int((weight != 0).sum()) == int(ticket.mask["fc1.weight"].sum())
    ticket.save(tmp_path / "again", pack="auto" if number >= 3 else "bits")
    assert ticket.factors.keys() == ({"fc1.weight", "fc2.weight"} if number == 4 else set())
    if number in (2, 3):  # they have gains, whose digest was added later
        assert header_of(tmp_path / "again").pop("rest")
        assert edited((tmp_path / "again").read_bytes(), rest=...) == edited(path.read_bytes())
    else:
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "share"), [("d0.01-60", 0.075), ("d0.022-", 0.125), ("d0.06-", 0.25), ("d0.1-36", 0.37), ("d0.15-", 0.48)]
)
def test_packed_tickets_of_lenet_are_small(name, share, tmp_path):
    (path,) = RECORDED.glob(f"crbg-lenet-300-100-mnist-{name}*")
    ticket = Ticket.load(path)
    ticket.save(tmp_path / "t")
    assert Ticket.load(tmp_path / "t") == ticket
    assert (tmp_path / "t").stat().st_size <= share * path.stat().st_size
    stream = load_tensors((tmp_path / "t").read_bytes())["packed"].numel()
    assert stream <= 0.82 * sizes(ticket.mask, 0)["entropy by layer"]


def new_ticket(density=0.05, name="lenet-20-10", **fields):
    model = models.build(name, (1, 6, 6), 3)
    initialise(model, "uniform", 0.1, 7)
    initial = tensor_digest(model.state_dict())
    return Ticket(random_mask(model, density), 7, "uniform", 0.1, name, (1, 6, 6), 3, initial, **fields)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.5, 1.0])
def test_a_packed_file_is_never_larger_than_one_with_bits(density, tmp_path):
    ticket = new_ticket(density, gain={"fc1.weight": 0.5} if density == 0.3 else {})
    ticket.save(tmp_path / "auto")
    ticket.save(tmp_path / "bits", pack="bits")
    auto, bits = ((tmp_path / n).read_bytes() for n in ("auto", "bits"))
    assert len(auto) <= len(bits)
    assert header_of(tmp_path / "bits")["format"] == (2 if density == 0.3 else 1)
    assert Ticket.load(tmp_path / "auto") == Ticket.load(tmp_path / "bits") == ticket
    if density == 0.5:
        assert auto == bits, "a random mask of this density cannot be packed"


def test_masks_beyond_the_limit_are_stored_as_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "LARGEST", 949)
    new_ticket().save(tmp_path / "t")
    assert header_of(tmp_path / "t")["format"] == 1


def test_tickets_are_not_saved_in_unknown_ways(tmp_path):
    with pytest.raises(CrbgError, match=r"unknown value pack='zip'.*auto, bits"):
        new_ticket().save(tmp_path / "t", pack="zip")
    for field, value in (("seed", -1), ("scale", 0.0), ("law", "gauss")):
        with pytest.raises(CrbgError, match=field if field != "law" else "unknown distribution"):
            dataclasses.replace(new_ticket(), **{field: value}).save(tmp_path / "t")
    assert not list(tmp_path.iterdir())


# --- tickets of given weights ---


@pytest.fixture
def own():
    """Return a function that builds a model of one's own with given weights, and a ticket that keeps large weights."""

    def build(dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(60, 40), torch.nn.ReLU(), torch.nn.Linear(40, 30)).to(dtype)

    weights = {n: w for n, w in build().state_dict().items() if n.endswith("weight")}
    mask = Mask({n: w.abs() > 0.9 * w.abs().max() for n, w in weights.items()})
    return build, Ticket(mask, 0, "given", 1.0, "", (), 0, tensor_digest(build().state_dict()))


def test_given_weights_make_a_file_smaller_that_needs_them(own, tmp_path):
    build, ticket = own
    ticket.save(tmp_path / "plain")
    ticket.save(tmp_path / "given", model=build())
    assert header_of(tmp_path / "plain")["contexts"] == "none"
    assert header_of(tmp_path / "given")["contexts"] == "weights"
    streams = [load_tensors((tmp_path / n).read_bytes())["packed"].numel() for n in ("given", "plain")]
    assert streams[0] < 0.7 * streams[1]
    assert Ticket.load(tmp_path / "plain") == ticket
    model = build()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loaded = Ticket.load(tmp_path / "given", model)
    assert loaded == ticket
    assert all(same_bytes(t, before[n]) for n, t in model.state_dict().items())
    assert int((loaded.apply(model)[0].weight != 0).sum()) == int(ticket.mask["0.weight"].sum())


def test_given_weights_are_checked_before_unpacking(own, tmp_path):
    build, ticket = own
    ticket.save(tmp_path / "t", model=build())
    with pytest.raises(CrbgError, match=r"cannot read the ticket .*pass a model that has them: Ticket\.load"):
        Ticket.load(tmp_path / "t")
    for other in (build(seed=1), build(torch.float64), ticket.apply(build()), torch.nn.Linear(3, 3)):
        with pytest.raises(CrbgError, match="but the model has other weights"):
            Ticket.load(tmp_path / "t", other)
    with pytest.raises(CrbgError, match="but the model has other weights"):
        ticket.save(tmp_path / "u", model=build(seed=1))
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_given_weights_may_have_any_type(own, dtype, tmp_path):
    build, ticket = own
    ticket = dataclasses.replace(ticket, initial=tensor_digest(build(dtype).state_dict()))
    ticket.save(tmp_path / "t", model=build(dtype))
    assert Ticket.load(tmp_path / "t", build(dtype)) == ticket


def test_a_mask_that_does_not_depend_on_the_weights_is_packed_without_them():
    model = tiny(outputs=40)
    ticket = Ticket(random_mask(model, 0.02), 0, "given", 1.0, "", (), 0, tensor_digest(model.state_dict()))
    assert ticket.to_bytes(model=model) == ticket.to_bytes()


def test_running_statistics_do_not_matter_for_given_weights(tmp_path):
    model = tiny(outputs=40)
    initial = tensor_digest({n: t for n, t in model.state_dict().items() if "running" not in n and "num_b" not in n})
    large = Mask({n: w.detach().abs() > 0.9 * w.detach().abs().max() for n, w in weights(model).items()})
    ticket = Ticket(large, 0, "given", 1.0, "", (), 0, initial)
    ticket.save(tmp_path / "t", model=model)
    model.train()(torch.randn(8, 1, 6, 6))
    assert header_of(tmp_path / "t")["contexts"] == "weights"
    assert Ticket.load(tmp_path / "t", model) == ticket


# --- files from strangers ---


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("seed", v) for v in (-1, 1.0, "0", None, True, [0])),
        *(("scale", v) for v in (0, -0.5, math.inf, math.nan, "1", None, True)),
        *(("law", v) for v in ("gauss", None, ["uniform"])),
        *(("format", v) for v in (5, 0, "1", None, ...)),
        *(("temperature", v) for v in (0, -1.0, math.inf, "hot")),
    ],
)
def test_values_that_would_fail_later_are_refused_at_load(number, field, value, tmp_path):
    data = edited((GOLDEN / f"format{number}.safetensors").read_bytes(), **{field: value})
    with pytest.raises(
        CrbgError,
        match=r"is not a valid ticket: (its (format|logit scale)|the (seed|scale) of|unknown dist|KeyError|ValueError)",
    ):
        load_bytes(data, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"contexts": ...},
        {"contexts": "pixels"},
        {"contexts": "none"},
        {"contexts": None},
        {"seed": 8},
        {"format": 1},
        {"mask": "0" * 64},
        {"network": "0" * 64},
        {"model": "", "shapes": {"w": [2**14, 2**14]}},
        {"model": "", "shapes": {"w": [2**40, 2**40]}},
        {"model": "", "shapes": {}},
        {"model": "", "shapes": {"w": [-25, -38]}},
    ],
    ids=str,
)
def test_hostile_headers_of_packed_files_are_refused(fields, tmp_path):
    with pytest.raises(CrbgError, match="is not a valid ticket"):
        load_bytes(edited((GOLDEN / "format3.safetensors").read_bytes(), **fields), tmp_path)


def test_a_packed_format_needs_a_packed_mask(tmp_path):
    data = edited((GOLDEN / "format2.safetensors").read_bytes(), format=3, contexts="seed")
    with pytest.raises(CrbgError, match="is not a valid ticket: KeyError"):
        load_bytes(data, tmp_path)


def test_a_digest_of_huge_shapes_takes_no_memory(tmp_path):
    shapes = {"w": (2**14, 2**14)}
    fields = {"model": "", "shapes": {"w": [2**14, 2**14]}, "network": shapes_digest(shapes)}
    data, start = edited((GOLDEN / "format3.safetensors").read_bytes(), **fields), time.process_time()
    tracemalloc.start()
    with pytest.raises(CrbgError, match="44 bytes are too few"):
        load_bytes(data, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "packed", [torch.zeros(44), torch.zeros(44, dtype=torch.bfloat16), torch.zeros(0, dtype=torch.uint8)], ids=str
)
def test_packed_masks_in_other_types_are_refused(packed, tmp_path):
    data = (GOLDEN / "format3.safetensors").read_bytes()
    with pytest.raises(CrbgError, match="is not a valid ticket"):
        load_bytes(save_tensors({"packed": packed}, {"crbg": json.dumps(read_header(data))}), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 3, 4])
def test_truncated_and_changed_files_give_one_error_or_the_same_mask(number, tmp_path):
    data = (GOLDEN / f"format{number}.safetensors").read_bytes()
    mask, random, refused = Ticket.load(GOLDEN / f"format{number}.safetensors").mask, np.random.default_rng(0), 0
    damaged = [data[:size] for size in range(0, len(data), 9)]
    for _ in range(120):
        changed = bytearray(data)
        for place in random.integers(len(data), size=random.integers(1, 4)):
            changed[place] ^= 1 << random.integers(8)
        damaged.append(bytes(changed))
    tracemalloc.start()
    for i, d in enumerate(damaged):
        try:
            assert load_bytes(d, tmp_path).mask == mask, i
        except CrbgError:
            refused += 1
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert refused > 0.8 * len(damaged)


@pytest.mark.parametrize("change", [{"gain": {"fc1.weight": 2.5}}, {"gain": ...}, {"temperature": 3.0}])
def test_changed_gains_and_temperatures_are_refused(change, tmp_path):
    data = dataclasses.replace(Ticket.load(GOLDEN / "format2.safetensors"), logit_scale=2.0).to_bytes()
    assert load_bytes(data, tmp_path).logit_scale == 2.0
    with pytest.raises(
        CrbgError, match="its gains, logit scale, factors or running statistics do not match the digest"
    ):
        load_bytes(edited(data, **change), tmp_path)


def test_changed_running_statistics_are_refused(tmp_path):
    ticket = Ticket.load(GOLDEN / "format1.safetensors")
    data = dataclasses.replace(ticket, statistics={"bn.running_mean": torch.arange(5.0)}).to_bytes()
    assert load_bytes(data, tmp_path).statistics["bn.running_mean"].tolist() == [0, 1, 2, 3, 4]
    at = data.index(np.arange(5, dtype=np.float32).tobytes()) + 7
    with pytest.raises(CrbgError, match="running statistics do not match the digest"):
        load_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], tmp_path)


# --- integer factors ---


def with_factors(seed=0):
    """Return a ticket whose kept weights have signs in one tensor, and factors up to 3 in the other."""
    ticket, draw = Ticket.load(GOLDEN / "format1.safetensors"), np.random.default_rng(seed)
    factors = {}
    for name, values in (("fc1.weight", [-1, 1]), ("fc2.weight", [-2, 1, 3])):
        kept = ticket.mask[name]
        drawn = torch.from_numpy(draw.choice(values, size=kept.shape).astype(np.int8))
        factors[name] = torch.where(kept, drawn, torch.ones((), dtype=torch.int8))
    return dataclasses.replace(ticket, factors=factors)


@pytest.mark.parametrize("pack", ["auto", "bits"])
def test_factors_multiply_the_kept_weights(pack, tmp_path):
    ticket = with_factors()
    ticket.save(tmp_path / "t", pack)
    again, plain = Ticket.load(tmp_path / "t"), Ticket.load(GOLDEN / "format1.safetensors").model()
    assert header_of(tmp_path / "t")["format"] == 4
    for name, factor in ticket.factors.items():
        assert again.factors[name].equal(factor)
        torch.testing.assert_close(again.model().get_parameter(name), plain.get_parameter(name) * factor)
    assert "factors" not in again.describe()


def test_a_plain_reader_decodes_the_planes_of_factors(tmp_path):
    """The reader in `tests/naive_packing.py` was written from the documentation of the format."""
    ticket = with_factors()
    tensors, decoded = load_tensors(ticket.to_bytes()), {n: [1] * int(m.sum()) for n, m in ticket.mask.items()}
    assert {n for n in tensors if n[:7] == "factors"} == {f"factors.{p}" for p in ("negative", "above.1", "above.2")}

    def bits_of(plane, level):
        places = {n: [i for i, f in enumerate(fs) if f >= level] for n, fs in decoded.items()}
        shapes = {n: (len(p),) for n, p in places.items() if p}
        none = {n: [0] * size for n, (size,) in shapes.items()}
        bits = naive_packing.unpack(tensors[f"factors.{plane}"].numpy().tobytes(), shapes, none)
        return [(n, i) for n in shapes for i, bit in zip(places[n], bits[n], strict=True) if bit]

    negative = bits_of("negative", 1)
    for level in (1, 2):
        for n, i in bits_of(f"above.{level}", level):
            decoded[n][i] += 1
    for n, i in negative:
        decoded[n][i] *= -1
    assert decoded.pop("fc3.weight") == [1, 1, 1]
    assert decoded == {n: f[ticket.mask[n]].tolist() for n, f in ticket.factors.items()}


def test_factors_take_the_logarithm_of_their_number():
    torch.manual_seed(0)
    mask = Mask({"a.weight": torch.rand(200, 300) < 0.1, "b.weight": torch.zeros(3, 3, dtype=torch.bool)})
    assert packing.factors.encode(mask, {}) == {}
    signs = torch.where(mask["a.weight"] & (torch.rand(200, 300) < 0.5), -1, 1).to(torch.int8)
    (size,) = map(len, packing.factors.encode(mask, {"a.weight": signs}).values())
    assert abs(size - mask.kept / 8) < 0.03 * mask.kept / 8
    thirds = torch.where(mask["a.weight"], torch.randint(1, 4, (200, 300)), 1).to(torch.int8)
    size = sum(map(len, packing.factors.encode(mask, {"a.weight": thirds}).values()))
    assert abs(size - math.log2(3) * mask.kept / 8) < 0.03 * size


def test_only_integer_factors_can_be_stored():
    mask = Mask({"w": torch.tensor([True, True, True, False])})
    before = {"w": torch.tensor([0.1, 0.0, -0.3, 0.4])}
    assert packing.factors.between(before, {"w": before["w"].clone()}, mask) == {}
    after = {"w": before["w"] * torch.tensor([-1, 5, 3, 0.123])}
    assert packing.factors.between(before, after, mask)["w"].tolist() == [-1, 1, 3, 1]
    for wrong in (0.5, 0.0, 200.0, torch.nan):
        with pytest.raises(CrbgError, match="the kept weights of w are not their initial values times integers"):
            packing.factors.between(before, {"w": before["w"] * torch.tensor([1, 1, wrong, 1])}, mask)


def test_damaged_factors_are_refused(tmp_path):
    data = with_factors().to_bytes()
    tensors, header = load_tensors(data), {"crbg": json.dumps(read_header(data))}
    gone = {n: t for n, t in tensors.items() if n != "factors.negative"}
    for damaged, problem in (
        (gone, "do not match the digest"),
        ({n: t for n, t in tensors.items() if n != "factors.above.1"}, "the planes of its factors are"),
        (tensors | {"factors.more": tensors["factors.negative"].clone()}, "the planes of its factors are"),
        (tensors | {"factors.negative": tensors["factors.negative"][:-1].clone()}, "is not a valid ticket"),
    ):
        with pytest.raises(CrbgError, match=problem):
            load_bytes(save_tensors(damaged, header), tmp_path)
    with pytest.raises(CrbgError, match="its format is 3, which has no factors"):
        load_bytes(edited(data, format=3), tmp_path)
