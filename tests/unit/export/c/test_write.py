import copy
import dataclasses
import subprocess

import numpy as np
import pytest
import torch
from c_programs import FLAGS, NETWORKS, build, close, drawn, made, needs_compiler, outputs
from networks import random_mask
from torch import nn

from crbg import CrbgError, Ticket, attach, bake
from crbg.export.c import to_c, write
from crbg.export.c.host import STANDARD
from crbg.gates.base import Fixed
from crbg.models import build as registered
from crbg.models.initial_weights import initialise, tensor_digest

pytestmark = needs_compiler
LAWS = ("uniform", "uniform_fan", "signed_constant", "kaiming_normal")


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_program_computes_what_the_network_computes(kind, tmp_path):
    model, x = made(kind)
    program, expected = build(tmp_path, model, in_shape=tuple(x.shape[1:])), outputs(model, x)
    assert close(program.predict(x.numpy()), expected)
    for batch in (1, 2, 16, 37):  # one input, a part of a tile, one tile, two tiles and a part
        assert close(program.predict(x.numpy(), batch), expected)


@pytest.mark.parametrize("draw", ["start", "fly"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_drawn_weights_give_the_same_outputs(kind, draw, tmp_path):
    model, x = made(kind)
    ticket = drawn(model, "kaiming_normal", density=0.5, scale=1.0)
    program = build(tmp_path, ticket, draw, model=model, in_shape=tuple(x.shape[1:]))
    expected = outputs(ticket.apply(copy.deepcopy(model)), x)
    assert close(program.predict(x.numpy()), expected)
    if draw == "start":
        assert close(program.predict(x.numpy(), 20), expected)


@pytest.mark.parametrize("draw", ["start", "fly"])
@pytest.mark.parametrize("law", LAWS)
def test_drawn_weights_equal_those_of_python_bit_by_bit(law, draw, tmp_path):
    """The outputs of a linear layer for the rows of the identity matrix are its weights."""
    model = nn.Sequential(nn.Linear(60, 200, bias=False))
    ticket = drawn(model, law, gain={"0.weight": 1.7})
    program = build(tmp_path, ticket, draw, model=model, in_shape=(60,))
    weights = program.predict(np.eye(60, dtype=np.float32)).T
    expected = ticket.apply(model)[0].weight.detach().numpy()
    assert np.array_equal(weights, expected)
    assert len(np.unique(np.abs(weights))) > (1 if law == "signed_constant" else 3000)


@pytest.mark.parametrize("draw", ["start", "fly"])
def test_drawn_weights_of_a_grouped_convolution_are_exact(draw, tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False))
    ticket = drawn(model, "uniform")
    program = build(tmp_path, ticket, draw, model=model, in_shape=(4, 3, 3))
    found = program.predict(np.eye(36, dtype=np.float32)).T
    full = ticket.apply(model)[0].weight.detach().numpy().reshape(6, 18)
    assert np.array_equal(found[:3, :18], full[:3])
    assert np.array_equal(found[3:, 18:], full[3:])
    assert not found[:3, 18:].any()


def test_a_ticket_of_a_registered_network_needs_no_model(tmp_path):
    net = registered("lenet-12", (1, 4, 4), 3, activation="prelu_per_unit")
    initialise(net, "uniform", 0.2, 5)
    initial = tensor_digest(net.state_dict())
    arguments = {"activation": "prelu_per_unit"}
    ticket = Ticket(random_mask(net, 0.5), 5, "uniform", 0.2, "lenet-12", (1, 4, 4), 3, initial, arguments)
    x = torch.randn(5, 1, 4, 4)
    for draw in write.DRAWS:
        assert close(build(tmp_path, ticket, draw).predict(x.numpy()), outputs(ticket.model(), x))


@pytest.mark.parametrize("draw", write.DRAWS)
@pytest.mark.parametrize("first", ["linear", "convolution"])
def test_pixels_are_normalised_as_in_training(first, draw, tmp_path):
    layers = [nn.Flatten(), nn.Linear(18, 6)] if first == "linear" else [nn.Conv2d(2, 3, 2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(6 if first == "linear" else 12, 4))
    ticket, mean, std = drawn(model, "uniform", density=0.6), (0.2, 0.6), (0.3, 0.1)
    x = np.random.default_rng(0).integers(0, 256, (20, 2, 3, 3), np.uint8)
    program = build(tmp_path, ticket, draw, model=model, in_shape=(2, 3, 3), pixels=(mean, std))
    spread, centre = torch.tensor(std).reshape(-1, 1, 1), torch.tensor(mean).reshape(-1, 1, 1)
    expected = outputs(ticket.apply(copy.deepcopy(model)), (torch.from_numpy(x) / 255 - centre) / spread)
    assert close(program.predict(x), expected)
    if draw != "fly":
        assert close(program.predict(x, 17), expected)


DRIVER = """
#include "model.h"
#include <stdio.h>
int main(void)
{
    static float x[MODEL_INPUTS * 21], y[MODEL_OUTPUTS * 21], work[%(work)s];
    if (fread(x, sizeof x, 1, stdin) != 1)
        return 1;
    %(calls)s
    return fwrite(y, sizeof y, 1, stdout) != 1;
}
"""
ONE_BY_ONE = "for (int i = 0; i < 21; i++) model_predict(x + i * MODEL_INPUTS, y + i * MODEL_OUTPUTS, work);"
BATCH = "model_predict_batch(x, y, 21, work);"


@pytest.mark.long
@pytest.mark.parametrize(("draw", "kind"), [("stored", "convolutions"), ("start", "activations"), ("fly", "pools")])
def test_sanitizers_find_no_fault(draw, kind, tmp_path):
    """The work memory has exactly the stated size, so that an access outside it is found."""
    model, x = made(kind)
    ticket = drawn(model, "kaiming_normal", density=0.5, scale=1.0)
    to_c(ticket, tmp_path, draw, model=model, in_shape=tuple(x.shape[1:]))
    calls = {"stored": BATCH, "start": f"model_init(); {BATCH}", "fly": ONE_BY_ONE}[draw]
    work = "MODEL_WORK" if draw == "fly" else "MODEL_BATCH_WORK"
    (tmp_path / "main.c").write_text(DRIVER % {"work": work, "calls": calls})
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command = ["cc", *STANDARD, *FLAGS, *sanitize, "-o", "main", "main.c", "model.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], input=x[:21].numpy().tobytes(), capture_output=True, check=True)
    assert close(
        np.frombuffer(done.stdout, np.float32).reshape(21, -1), outputs(ticket.apply(copy.deepcopy(model)), x[:21])
    )


def test_the_network_stays_as_it_is(tmp_path):
    model, _ = made("activations")
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    to_c(model, tmp_path, in_shape=(3, 2, 2), mask=random_mask(model, 0.2))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_mask_is_applied(tmp_path):
    model, x = made("activations")
    mask = random_mask(model, 0.5, seed=4)
    program = build(tmp_path, model, in_shape=(3, 2, 2), mask=mask)
    assert close(program.predict(x.numpy()), outputs(bake(model, mask), x))


def test_the_details_count_what_is_in_the_program(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    rows = torch.tensor([[1.0, 0, 2], [0, 0, 0], [3, 4, 5], [6, 0, 0]])
    model[0].weight.data, model[1 + 1].weight.data = rows, torch.tensor([[1.0, 1, 0, 1], [0, 1, 0, 1]])
    found = to_c(model, tmp_path, in_shape=(3,))
    # Unit 1 has no inputs and unit 2 no outputs. Each layer is one slice of 4 places as long as its longest unit.
    assert (found["weights"], found["units dropped"]) == (3 + 3, 2)
    assert found["constant tables, bytes"] == 2 * (2 * 2 + 2 + 2) + (2 + 4) * (4 * 2 + 4 * 2)
    assert found["work memory, bytes"] == 4 * 2


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([nn.Linear(4, 4), nn.GELU()], {}, "layer '1' is a GELU, which C programs do not support; supported: Linear"),
        ([nn.Linear(4, 4)], {"in_shape": None}, "in_shape is missing"),
        ([nn.Linear(4, 4)], {"in_shape": (5,)}, r"layer '0' does not take an input of shape \(5,\)"),
        (
            [nn.Linear(4, 4)],
            {"in_shape": (2, 4)},
            r"applied to inputs of shape \(2, 4\); put an nn.Flatten",
        ),
        ([nn.Linear(4, 4)], {"name": "1st"}, "name '1st' must be a C identifier"),
        ([nn.Linear(4, 4)], {"draw": "later"}, "unknown value 'later' of `draw`: .* fly, start, stored"),
        ([nn.Linear(4, 4)], {"draw": "fly"}, "draw='fly' needs a ticket with a seed"),
        ([nn.Linear(4, 4)], {"pixels": ((0.5, 0.5), (1, 1))}, "a positive standard deviation for each of 1 channels"),
        ([nn.Linear(4, 4).double()], {}, "0.weight must be float32, not torch.float64"),
        ([nn.ReLU()], {}, "no linear layer and no convolution"),
        ([nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)], {}, "layer '1' has no running statistics"),
        ([nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")], {"in_shape": (1, 4, 4)}, "padding_mode='circular'"),
        ([nn.MaxPool2d(2, dilation=2), nn.Conv2d(1, 1, 1)], {"in_shape": (1, 4, 4)}, "layer '0' has a dilation"),
        ([nn.AdaptiveAvgPool2d(3), nn.Conv2d(1, 1, 1)], {"in_shape": (1, 4, 4)}, "does not divide the input size"),
        ([nn.Flatten(2), nn.Linear(16, 2)], {"in_shape": (1, 4, 4)}, "layer '0' must flatten all axes"),
    ],
)
def test_what_is_not_supported_is_one_clear_error(layers, options, message, tmp_path):
    with pytest.raises(CrbgError, match=message):
        to_c(nn.Sequential(*layers), tmp_path, **{"in_shape": (4,)} | options)
    assert not any(tmp_path.iterdir())


def test_a_network_that_is_no_sequence_is_refused(tmp_path):
    with pytest.raises(CrbgError, match="the order of the layers of Bilinear is not known"):
        to_c(nn.Bilinear(2, 2, 2), tmp_path, in_shape=(2,))


def test_gates_must_be_removed_first(tmp_path):
    model = attach(nn.Sequential(nn.Linear(4, 4)), lambda name, w: Fixed(torch.ones_like(w)))
    with pytest.raises(CrbgError, match="layer '0' has gates"):
        to_c(model, tmp_path, in_shape=(4,))


def test_weights_that_follow_from_no_seed_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    ticket = Ticket(random_mask(model), 0, "given", 1.0, "", (), 0, tensor_digest(model.state_dict()))
    with pytest.raises(CrbgError, match=r"do not come from a seed \(law='given'\); use draw='stored'"):
        to_c(ticket, tmp_path, "fly", model=model, in_shape=(4,))


def test_signs_are_not_drawn_but_stored(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(5, 6)
    plain = drawn(model, "uniform", density=0.8)
    signs = {n: torch.where(m & (torch.rand(m.shape) < 0.5), -1, 1).to(torch.int8) for n, m in plain.mask.items()}
    ticket = dataclasses.replace(plain, factors=signs)
    with pytest.raises(CrbgError, match="signs or integer factors, which the C program cannot draw; use draw='stored'"):
        to_c(ticket, tmp_path, "start", model=copy.deepcopy(model), in_shape=(6,))
    expected = outputs(ticket.apply(copy.deepcopy(model)), x)
    assert not close(outputs(plain.apply(copy.deepcopy(model)), x), expected)
    assert close(build(tmp_path, ticket, model=model, in_shape=(6,)).predict(x.numpy()), expected)


def test_a_ticket_has_its_own_mask(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(CrbgError, match="a ticket has its own mask"):
        to_c(drawn(model, "uniform"), tmp_path, model=model, mask=random_mask(model), in_shape=(4,))


def test_a_network_without_a_path_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data.zero_()
    with pytest.raises(CrbgError, match="no path of kept weights"):
        to_c(model, tmp_path, in_shape=(4,))


def test_too_many_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "LARGEST", 15)
    with pytest.raises(CrbgError, match="tables of 16 weights, more than 15"):
        to_c(nn.Sequential(nn.Linear(4, 4)), tmp_path, in_shape=(4,))


def test_many_inputs_need_larger_positions(tmp_path):
    model, x = nn.Sequential(nn.Linear(66000, 2)), torch.randn(2, 66000)
    bake(model, {"0.weight": (torch.arange(132000) % 500 == 7).view(2, -1)})
    program = build(tmp_path, model, in_shape=(66000,))
    assert "typedef uint32_t position;" in (tmp_path / "model.c").read_text()
    assert close(program.predict(x.numpy()), outputs(model, x))


def test_a_linear_layer_that_occurs_twice_is_computed_twice(tmp_path):
    layer = nn.Linear(6, 6)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(5, 6)
    assert close(build(tmp_path, model, in_shape=(6,)).predict(x.numpy()), outputs(model, x))
    ticket = drawn(model, "uniform", density=0.5)
    with pytest.raises(CrbgError, match="use draw='stored'"):
        to_c(ticket, tmp_path / "fly", "fly", model=model, in_shape=(6,))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["", "0", "1"])
def test_hooks_are_refused(register, place, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    getattr(model.get_submodule(place), register)(lambda *_: None)
    name = f"layer '{place}'" if place else "the network"
    with pytest.raises(CrbgError, match=f"^{name} has forward hooks, which a C program does not execute"):
        to_c(model, tmp_path, in_shape=(4,))
