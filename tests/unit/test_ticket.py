import dataclasses
import json
import math
import pickle
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import random_mask, same_bytes, tiny
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from crbg import find_ticket, models
from crbg.errors import CrbgError, WriteError
from crbg.models.initial_weights import initialise, tensor_digest
from crbg.rng import LAWS
from crbg.ticket import Ticket

# tickets ------------------------------------------------------------------------------------------------------------


def ticket_of(model, mask, law="uniform", scale=1.0, seed=0, **options):
    given = {
        "model_name": "lenet-300-100",
        "in_shape": (1, 28, 28),
        "classes": 10,
        "initial": tensor_digest(model.state_dict()),
    }
    return Ticket(mask, seed, law, scale, **{**given, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a valid ticket file of LeNet-300-100 as (path, bytes, mask)."""
    model = models.build("lenet-300-100", (1, 28, 28), 10)
    initialise(model, "uniform", 1.0, 0)
    mask, path = random_mask(model), tmp_path_factory.mktemp("ticket") / "t.safetensors"
    ticket_of(model, mask).save(path, pack="bits")
    return path, path.read_bytes(), mask


def edited(data, header=None, mask=None):
    """Return the bytes of a ticket file with changed header fields or mask bytes; the rest is unchanged."""
    size = int.from_bytes(data[:8], "little")
    old = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["crbg"])
    tensors = load_tensors(data)
    if mask is not None:
        tensors["mask"] = mask
    fields = {k: v for k, v in {**old, **(header or {})}.items() if v is not ...}
    return save_tensors(tensors, {"crbg": json.dumps(fields)})


def load_bytes(data, tmp_path):
    path = tmp_path / "edited.safetensors"
    path.write_bytes(data)
    return Ticket.load(path)


def test_a_ticket_prints_on_one_short_line(saved):
    ticket = Ticket.load(saved[0])
    kept = f"{ticket.mask.kept} of 266200 weights kept ({ticket.mask.density:.4g})"
    assert repr(ticket) == str(ticket) == f"Ticket(lenet-300-100, {kept}, seed=0, law='uniform', scale=1)"
    assert len(repr(dataclasses.replace(ticket, model_name=""))) < 120


@pytest.mark.parametrize("law", LAWS)
def test_a_ticket_rebuilds_the_sparse_network_to_the_bit(law, new_lenet, tmp_path):
    model = new_lenet(7, law, 0.6, "lenet-30-20", activation="prelu")
    mask, raw = random_mask(model), {n: t.clone() for n, t in model.state_dict().items()}
    ticket = ticket_of(model, mask, law, 0.6, 7, model_name="lenet-30-20", model_args={"activation": "prelu"})
    ticket.save(tmp_path / "new" / "t.safetensors")
    loaded = Ticket.load(str(tmp_path / "new" / "t.safetensors"))
    assert loaded == ticket
    rebuilt = loaded.model().state_dict()
    assert list(rebuilt) == list(raw)
    for name, t in rebuilt.items():
        assert same_bytes(t, raw[name] * mask[name] if name in mask else raw[name])
    assert loaded.describe()["kept"] == mask.kept
    assert json.dumps(loaded.describe())


def test_a_ticket_of_lenet_is_its_mask_and_little_more(saved):
    assert 266_200 // 8 < len(saved[1]) <= 34_000


def test_the_same_ticket_is_the_same_bytes(saved, tmp_path):
    Ticket.load(saved[0]).save(tmp_path / "again", pack="bits")
    assert (tmp_path / "again").read_bytes() == saved[1]
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_the_path_of_a_ticket_may_begin_with_the_home_folder(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Ticket.load(saved[0]).save("~/new/t.safetensors", pack="bits")
    assert (tmp_path / "new/t.safetensors").read_bytes() == saved[1]
    assert Ticket.load("~/new/t.safetensors").mask == saved[2]


def test_a_ticket_is_read_without_pickle(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert Ticket.load(saved[0]).mask == saved[2]


def test_a_ticket_for_another_network_is_refused(saved, new_lenet):
    ticket = Ticket.load(saved[0])
    with pytest.raises(CrbgError, match=r"'fc2.weight' is \(100, 300\) in the mask and \(200, 300\) in the network"):
        ticket.apply(new_lenet(name="lenet-300-200"))
    with pytest.raises(CrbgError, match="does not fit"):
        ticket.apply(new_lenet(name="lenet-300-100-50"))
    with pytest.raises(CrbgError, match="do not match the ticket's digest"):
        ticket.apply(new_lenet(activation="prelu"))  # same weights, one more tensor


@pytest.mark.parametrize("header", [{"seed": 1}, {"law": "kaiming_normal"}, {"scale": 1.5}, {"initial": "0" * 64}])
def test_a_header_that_draws_other_weights_is_refused(header, saved, tmp_path):
    ticket = load_bytes(edited(saved[1], header), tmp_path)
    drawn = rf"law='{ticket.law}', scale={ticket.scale:g} and seed={ticket.seed} do not match the ticket's digest"
    with pytest.raises(CrbgError, match=drawn):
        ticket.model()
    assert load_bytes(edited(saved[1]), tmp_path).model() is not None


def test_a_flipped_bit_of_the_mask_is_refused(saved, tmp_path):
    packed = load_tensors(saved[1])["mask"]
    packed[1000] ^= 4
    with pytest.raises(CrbgError, match="its mask does not match the digest"):
        load_bytes(edited(saved[1], mask=packed), tmp_path)


HOSTILE = {
    "another format": {"format": 5},
    "no seed": {"seed": ...},
    "no mask digest": {"mask": ...},
    "unknown law": {"law": "gauss"},
    "unknown model": {"model": "alexnet"},
    "model of another size": {"model": "lenet-300-101"},
    "same count, other shapes": {"model": "lenet-300-100", "in": [1, 784, 1], "network": "0" * 64},
    "giant network": {"model": "lenet-1000000000-1000000000"},
    "giant images": {"in": [10**4, 10**4, 10**4]},
    "network beyond 64 bits": {"model": "lenet-99999999999999-99999999999999"},
    "images beyond 64 bits": {"in": [10**6, 10**6, 10**6]},
    "giant number": {"model": "lenet-" + "9" * 5000},
    "images of nothing": {"in": [0, 28, 28]},
    "negative classes": {"classes": -10},
    "infinite seed": {"seed": math.inf},
    "seed in words": {"seed": "zero"},
    "arguments of a stranger": {"args": {"bias": True}},
    "arguments in a list": {"args": [1]},
    "huge shapes": {"model": "", "shapes": {"w": [2**62, 2**62]}},
    "empty shapes": {"model": "", "shapes": {}},
    "shapes of nothing": {"model": "", "shapes": {"w": [0]}},
    "negative shapes": {"model": "", "shapes": {"a": [-8], "b": [266_208]}},
    "doubly negative shapes": {"model": "", "shapes": {"a": [-2, -133_100]}},
    "no shapes": {"model": ""},
    "shapes in words": {"model": "", "shapes": "many"},
    "infinite shapes": {"model": "", "shapes": {"w": [math.inf]}},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused_quickly(kind, saved, tmp_path):
    data, start = edited(saved[1], HOSTILE[kind]), time.process_time()
    with pytest.raises(CrbgError, match="is not a valid ticket"):
        load_bytes(data, tmp_path)
    assert time.process_time() - start < 5


def test_shapes_of_a_named_network_take_no_memory(saved, monkeypatch):
    devices, build = [], models.build
    monkeypatch.setattr(models, "build", lambda *a, **k: devices.append(torch.empty(0).device.type) or build(*a, **k))
    Ticket.load(saved[0])
    assert devices == ["meta"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8 + b"{}",
        b"PK\x03\x04" + b"\0" * 50,
        pickle.dumps({"mask": 1}),
        save_tensors({"mask": torch.zeros(3, dtype=torch.uint8)}),
        save_tensors({"mask": torch.zeros(3, dtype=torch.uint8)}, {"crbg": "[]"}),
        save_tensors({"mask": torch.zeros(3, dtype=torch.uint8)}, {"crbg": "[" * 100_000}),
        save_tensors({"mask": torch.zeros(3, dtype=torch.uint8)}, {"crbg": "{"}),
    ],
    ids=["empty", "endless header", "zip", "pickle", "no header", "list", "deep", "broken"],
)
def test_what_is_no_ticket_is_refused(data, tmp_path):
    with pytest.raises(CrbgError, match="is not a valid ticket"):
        load_bytes(data, tmp_path)


def test_a_ticket_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CrbgError, match="cannot read the ticket"):
            Ticket.load(path)


def test_masks_in_other_types_are_refused(saved, tmp_path):
    packed = load_tensors(saved[1])["mask"]
    for other in (packed.to(torch.float32), packed.to(torch.bfloat16), packed[:-1], packed[None][:0]):
        with pytest.raises(CrbgError, match="is not a valid ticket"):
            load_bytes(edited(saved[1], mask=other.contiguous()), tmp_path)


def sound_or_refused(data, mask, tmp_path):
    try:
        ticket = load_bytes(data, tmp_path)
    except CrbgError:
        return
    assert ticket.mask == mask


FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(size=st.integers(0, 34_000))
def test_a_truncated_ticket_is_sound_or_refused(size, saved, tmp_path):
    sound_or_refused(saved[1][:size], saved[2], tmp_path)


@FUZZ
@given(
    flips=st.lists(
        st.tuples(st.one_of(st.integers(0, 900), st.integers(0, 33_000)), st.integers(0, 255)), min_size=1, max_size=3
    )
)
def test_a_ticket_with_changed_bytes_is_sound_or_refused(flips, saved, tmp_path):
    data = bytearray(saved[1])
    for place, value in flips:
        data[place] = value
    sound_or_refused(bytes(data), saved[2], tmp_path)


@FUZZ
@given(data=st.binary(max_size=400))
def test_random_bytes_are_refused(data, saved, tmp_path):
    sound_or_refused(data, saved[2], tmp_path)


# tickets of models outside the registry -------------------------------------------------------------------------------


def test_a_ticket_of_given_weights_needs_those_weights(tmp_path):
    model = tiny()
    mask = random_mask(model)
    statistics = {"norm.running_mean": torch.full((6,), 0.25), "norm.running_var": torch.full((6,), 2.0)}
    initial = tensor_digest(model.state_dict())
    ticket = Ticket(mask, 0, "given", 1.0, "", (1, 6, 6), 3, initial, statistics=statistics)
    ticket.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert loaded.mask == mask
    with pytest.raises(CrbgError, match="outside the registry"):
        loaded.model()
    with pytest.raises(CrbgError, match="do not match the ticket's digest"):
        loaded.apply(tiny(seed=1))
    raw = {n: t.clone() for n, t in model.state_dict().items()}
    applied = loaded.apply(model)
    assert applied is model
    assert same_bytes(model.conv.weight.detach(), raw["conv.weight"] * mask["conv.weight"])
    assert torch.equal(model.norm.running_mean, statistics["norm.running_mean"])
    assert torch.equal(model.norm.running_var, statistics["norm.running_var"])
    assert torch.equal(model.head.bias, raw["head.bias"])


def test_a_ticket_may_not_make_timm_read_files():
    with pytest.raises(CrbgError, match="checkpoint_path"):
        models.build("timm:resnet18", (3, 32, 32), 10, checkpoint_path="weights.pth")


# tickets of `find_ticket` --------------------------------------------------------------------------------------------

X = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def searched():
    return find_ticket(tiny(), (X, torch.arange(32) % 3), 0.3, epochs=1, batch=16)


def same_state(a, b):
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def used(model):
    """Pass a batch through the model in training mode, which changes its running statistics but no weight."""
    model.train()(X)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_running_statistics_do_not_matter_for_a_ticket(searched, tmp_path):
    searched.ticket().save(tmp_path / "t.safetensors")
    ticket = Ticket.load(tmp_path / "t.safetensors")
    assert ticket.describe() == searched.ticket().describe()
    assert ticket.tensors == searched.tensors
    plain = dataclasses.replace(ticket, tensors={})  # checked by the digest alone
    sparse = [ticket.apply(tiny()), *(t.apply(used(tiny())) for t in (ticket, plain, searched))]
    again = find_ticket(used(tiny()), (X, torch.arange(32) % 3), 0.3, epochs=1, batch=16)
    assert again.initial == searched.initial
    for model in sparse[1:]:
        assert same_state(model.state_dict(), sparse[0].state_dict())
    assert bool(sparse[0].norm.running_mean.ne(0).any()), "the ticket's statistics are loaded"


def test_tickets_of_earlier_versions_are_checked_with_running_statistics(searched):
    old = dataclasses.replace(searched.ticket(), initial=tensor_digest(tiny().state_dict()), tensors={})
    assert same_state(old.apply(tiny()).state_dict(), searched.apply(tiny()).state_dict())
    with pytest.raises(CrbgError, match="do not match the ticket's digest"):
        old.apply(used(tiny()))


@pytest.mark.parametrize("through", ["file", "result"])
def test_other_weights_are_refused_by_name_and_stay(searched, through, tmp_path):
    searched.ticket().save(tmp_path / "t.safetensors")
    apply = searched.apply if through == "result" else Ticket.load(tmp_path / "t.safetensors").apply
    model = tiny()
    with torch.no_grad():
        model.head.bias.add_(1.0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CrbgError, match=r"found on other weights: head\.bias differ \(of 6 tensors\).*crbg\.bake"):
        apply(model)
    assert same_state(model.state_dict(), before)
    with pytest.raises(CrbgError, match=r"'head\.weight' has shape|'head\.weight' is"):
        apply(tiny(outputs=4))
    with pytest.raises(CrbgError, match=r"no weight 'conv\.weight'|'conv\.weight' is .* absent"):
        apply(torch.nn.Sequential(torch.nn.Linear(3, 3)))
    sparse = apply(tiny())
    with pytest.raises(CrbgError, match="found on other weights"):
        apply(sparse)  # the gains would be applied twice


@pytest.mark.parametrize("through", ["file", "result"])
def test_a_ticket_without_gains_may_be_applied_twice(through, tmp_path):
    found = find_ticket(tiny(), (X, torch.arange(32) % 3), 0.3, epochs=1, batch=16, gain="none")
    found.ticket().save(tmp_path / "t.safetensors")
    apply = found.apply if through == "result" else Ticket.load(tmp_path / "t.safetensors").apply
    assert same_state(apply(apply(tiny())).state_dict(), found.apply(tiny()).state_dict())


def test_a_result_with_trained_weights_belongs_to_the_trained_model():
    model = tiny()
    found = find_ticket(model, (X, torch.arange(32) % 3), 0.3, "imp", epochs=1, batch=16, lr=0.01)
    with pytest.raises(CrbgError, match="found on other weights"):
        found.apply(tiny())
    found.apply(model)


def test_a_path_may_start_with_the_home_folder(searched, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    searched.ticket().save("~/t.safetensors")
    assert (tmp_path / "t.safetensors").exists()
    assert Ticket.load("~/t.safetensors").mask == searched.mask


def test_a_folder_is_no_file_for_a_ticket(saved, tmp_path):
    with pytest.raises(WriteError, match=r"it is a folder; add the name of a file"):
        Ticket.load(saved[0]).save(tmp_path)


def test_a_ticket_with_a_wrong_seed_leaves_the_model_as_it_was():
    model = tiny()
    initialise(model, "uniform", 0.3, 0)
    ticket = dataclasses.replace(
        find_ticket(model, (X, torch.arange(32) % 3), 0.5, epochs=1).ticket(), law="uniform", scale=0.3, seed=1
    )
    other = tiny()
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(CrbgError, match=r"law='uniform', scale=0\.3 and seed=1 do not match"):
        ticket.apply(other)
    assert same_state(before, other.state_dict())
    dataclasses.replace(ticket, seed=0).apply(other)
