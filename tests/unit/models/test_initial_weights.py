import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from crbg import models
from crbg.errors import CrbgError
from crbg.models.initial_weights import LAWS, RUNNING, initialise, law_scale, tensor_digest, unit_draw

SMALL_NETWORKS = {
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=10),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, depth=2, init_values=1e-5
    ),
    "resnet": lambda: timm.create_model("resnet18", num_classes=10),
}


@pytest.fixture(params=SMALL_NETWORKS)
def network(request):
    return SMALL_NETWORKS[request.param]()


@pytest.mark.parametrize(("law", "bound"), [("uniform", 0.7), ("uniform_fan", 0.7 * math.sqrt(6 / 18))])
def test_uniform_laws_fill_their_interval(law, bound):
    model = nn.Sequential(nn.Conv2d(2, 4000, 3, bias=False))
    initialise(model, law, 0.7, 0)
    w = model[0].weight.detach().double()
    assert bound * 0.999 < w.abs().max() <= bound
    n = w.numel()
    assert abs(w.var(correction=0) - bound**2 / 3) < 3 * bound**2 * math.sqrt((1 / 5 - 1 / 9) / n)


def test_signed_constant_has_exactly_two_values():
    model = nn.Sequential(nn.Linear(50, 40, bias=False))
    initialise(model, "signed_constant", 2.0, 0)
    size = np.float32(2.0 * math.sqrt(2 / 50))
    assert set(model[0].weight.detach().unique().tolist()) == {-size.item(), size.item()}


def test_kaiming_normal_has_the_standard_deviation_of_its_fan_in():
    model = nn.Sequential(nn.Conv2d(8, 512, 3, bias=False))
    initialise(model, "kaiming_normal", 1.5, 0)
    w = model[0].weight.detach().double()
    std = 1.5 * math.sqrt(2 / 72)
    assert abs(w.std() - std) < 3 * std / math.sqrt(2 * w.numel())
    assert abs(w.mean()) < 3 * std / math.sqrt(w.numel())


@pytest.mark.parametrize("law", LAWS)
def test_scale_multiplies_the_draw_and_does_not_change_it(law):
    one, three = (unit_draw("w", (5, 4), law, 0) * law_scale((5, 4), law, s) for s in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-15)


def test_an_unknown_law_is_refused_with_the_nearest_name():
    with pytest.raises(CrbgError, match="did you mean 'kaiming_normal'"):
        initialise(nn.Linear(2, 2), "kaiming_norm", 1.0, 0)


def test_initialise_names_the_role_of_every_parameter_and_buffer(network):
    roles = initialise(network, "kaiming_normal", 1.0, 0)
    names = {n for n, _ in network.named_parameters()} | {n for n, _ in network.named_buffers()}
    assert set(roles) == names
    for name, _ in network.named_buffers():
        assert (roles[name] == "recalibrated") == (name.rsplit(".", 1)[-1] in RUNNING)
    gated = {n for n, r in roles.items() if r == "gated"}
    layers = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert gated == layers


def test_initialise_opens_every_branch(network):
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    assert norms
    for p in network.parameters():  # values as they might be after loading a checkpoint
        nn.init.constant_(p, 0.125)
    for m in norms:
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.fill_(3.0)
            m.running_var.fill_(9.0)
            m.num_batches_tracked.fill_(5)
    initialise(network, "kaiming_normal", 1.0, 0)
    for m in norms:
        assert bool((m.weight == 1).all())
        assert bool((m.bias == 0).all())
        if isinstance(m, nn.BatchNorm2d):
            assert bool((m.running_mean == 0).all())
            assert bool((m.running_var == 1).all())
            assert int(m.num_batches_tracked) == 0
    for name, p in network.named_parameters():
        if name.endswith("gamma"):
            assert bool((p == 1).all()), name
        if name.endswith("bias"):
            assert bool((p == 0).all()), name


def test_layer_scale_is_among_what_initialise_opens():
    for kind in ("convnext", "vit"):
        assert any(n.endswith("gamma") for n, _ in SMALL_NETWORKS[kind]().named_parameters())


def test_gains_of_any_shape_become_one():
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.GroupNorm(2, 4), nn.RMSNorm((2, 2)))
    for p in model.parameters():
        nn.init.zeros_(p)
    initialise(model, "uniform", 1.0, 0)
    assert all(bool((m.weight == 1).all()) for m in model)


def test_tables_are_small_and_not_constant():
    model = SMALL_NETWORKS["vit"]()
    roles = initialise(model, "uniform", 1.0, 0)
    table = model.pos_embed.detach().double()
    assert roles["pos_embed"] == "frozen"
    bound = 0.02 * math.sqrt(3)
    assert table.abs().max() <= bound * (1 + 1e-6)
    assert abs(table.std(correction=0) - 0.02) < 3 * bound**2 * math.sqrt((1 / 5 - 1 / 9) / table.numel()) / (2 * 0.02)


def test_initialise_forgets_what_the_model_held_before(network):
    initialise(network, "kaiming_normal", 1.0, 4)
    before = tensor_digest(network.state_dict())
    with torch.no_grad():
        for t in [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]:
            t.normal_()
    initialise(network, "kaiming_normal", 1.0, 4)
    assert tensor_digest(network.state_dict()) == before


def test_same_seed_same_bytes_other_seed_other_bytes():
    digests = []
    for seed in (0, 0, 1):
        model = models.build("lenet-300-100", (1, 28, 28), 10)
        initialise(model, "uniform", 1.0, seed)
        digests.append(tensor_digest(model.state_dict()))
    assert digests[0] == digests[1] != digests[2]


def test_prelu_slopes_keep_their_value():
    model = models.build("lenet-30-20", (1, 4, 4), 10, activation="prelu")
    roles = initialise(model, "uniform", 1.0, 0)
    assert model.act1.weight.item() == 0.25
    assert roles["act1.weight"] == "frozen"


def test_tensor_digest_sees_names_shapes_dtypes_and_bytes():
    base = {"a": torch.arange(6.0).reshape(2, 3)}
    others = [
        {"b": base["a"]},
        {"a": base["a"].reshape(3, 2)},
        {"a": base["a"].view(torch.int32)},
        {"a": torch.arange(6.0).reshape(2, 3) + torch.tensor([[0, 0, 0], [0, 0, 1e-6]])},
        {"a": base["a"], "c": torch.zeros(1)},
    ]
    digests = {tensor_digest(t) for t in (base, *others)}
    assert len(digests) == 6
    assert tensor_digest({"x": base["a"], "y": base["a"]}) == tensor_digest({"y": base["a"].clone(), "x": base["a"]})
