import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crbg import bake, models, weights
from crbg.errors import CrbgError
from crbg.export import shrink
from crbg.gates.coupling import shared_units, trace
from crbg.gates.layers import columns_of

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def half_closed(model, x):
    """Return a mask that closes every second unit."""
    units = shared_units(trace(model.eval(), lambda: model(x)), model)
    out = {}
    for name, own in units.items():
        w = weights(model)[name]
        out[name] = columns_of(model, name).expand(torch.arange(len(own)) % 2 == 0, w).expand(w.shape)
    return out


def registered(name, **options):
    model, _ = models.initial(name, (3, 8, 8), 4, "kaiming_normal", 1.0, 0, **options)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


NETWORKS = {
    "lenet with slopes": lambda: registered("lenet-8-6", activation="prelu_per_unit"),
    "conv2": lambda: registered("conv2", width=0.1, norm="batch"),
    "resnet20": lambda: registered("resnet20", width=0.25, affine=True),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    "vit": lambda: registered(
        "timm:vit_tiny_patch16_224", patch_size=8, depth=1, embed_dim=24, num_heads=4, init_values=0.5
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_has_the_same_outputs(name):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    mask = half_closed(model, IMAGES)
    before = copy.deepcopy(model.state_dict())
    small = shrink(model.train(), mask, IMAGES)
    assert small.training
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    expected = bake(copy.deepcopy(model), mask).eval()(IMAGES)
    torch.testing.assert_close(small.eval()(IMAGES), expected, rtol=1e-5, atol=1e-5)
    count, rest = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert rest < 0.8 * count
    for layer in small.modules():  # the attributes agree with the weights
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_var.shape == (layer.num_features,)
    if name == "vit":
        assert small.blocks[0].attn.num_heads == 2


def test_channels_are_cut_from_the_whole_residual_stream():
    model = registered("resnet20", width=0.25)
    small = shrink(model, half_closed(model, IMAGES), IMAGES)
    assert [tuple(p.shape[:2]) for n, p in small.named_parameters() if n.startswith(("conv", "stage1.0", "fc"))] == [
        (2, 3),
        (2, 2),
        (2, 2),
        (4, 8),
    ]


def test_units_without_inputs_are_constants_that_move_into_the_next_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    mask = {"0.weight": torch.ones(5, 6, dtype=torch.bool)}
    mask["0.weight"][1:3] = False
    small = shrink(model, mask, ROWS)
    assert small[0].weight.shape == (3, 6)
    assert small[2].weight.shape == (3, 3)
    assert small[2].bias.abs().min() > 0
    torch.testing.assert_close(small(ROWS), bake(model, mask)(ROWS))


@pytest.mark.parametrize(
    ("padding", "activation", "left"), [(0, nn.Sigmoid(), 3), (1, nn.ReLU(), 3), (1, nn.Sigmoid(), 4)]
)
def test_with_zero_padding_only_the_constant_zero_can_be_removed(padding, activation, left):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), activation, nn.Conv2d(5, 2, 3, padding=padding))
    with torch.no_grad():
        model[0].weight[1] = 0  # a constant: 0 behind a ReLU, 1/2 behind a sigmoid
        model[2].weight[:, 3] = 0  # a unit that nobody reads
    small = shrink(model, None, IMAGES)
    assert small[0].out_channels == left
    torch.testing.assert_close(small(IMAGES), model(IMAGES))


def test_a_unit_that_only_dead_units_read_is_dead():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[4].weight[:, 0] = 0
        model[2].weight[1:, 2] = 0  # only unit 0 of the next layer reads unit 2
    small = shrink(model, None, ROWS)
    assert [small[i].out_features for i in (0, 2, 4)] == [4, 3, 2]
    torch.testing.assert_close(small(ROWS), model(ROWS))


def test_every_layer_keeps_a_unit():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[2].weight.zero_()
    small = shrink(model, None, ROWS)
    assert small[0].out_features == 1
    torch.testing.assert_close(small(ROWS), model(ROWS))


def test_tied_layers_stay_tied_and_dtypes_are_kept():
    layers = [nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]
    model = nn.Sequential(*layers).bfloat16()
    model[4].weight = model[2].weight
    with torch.no_grad():
        model[2].weight[:, 0] = model[6].weight[:, 0] = 0
    small = shrink(model, None, ROWS.bfloat16())
    assert small[4].weight is small[2].weight
    assert small[2].weight.shape == (5, 5)
    assert small[2].weight.dtype == torch.bfloat16


def test_a_network_without_dead_units_is_refused():
    with pytest.raises(CrbgError, match=r"no unit of the network is dead.*granularity='stream'"):
        shrink(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), None, ROWS)


class Centred(nn.Linear):
    """A layer in which a weight of zero is not without effect."""

    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


def test_changed_outputs_are_an_error():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), Centred(5, 2))
    mask = {"2.weight": torch.ones(2, 5, dtype=torch.bool)}
    mask["2.weight"][:, 0] = False
    with pytest.raises(CrbgError, match=r"outputs of the network change by .* the units are not dead"):
        shrink(model, mask, ROWS)


def test_a_forward_pass_with_fixed_sizes_is_an_error():
    model = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (4,)), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight[:, 0] = 0
    with pytest.raises(CrbgError, match=r"does not run without its dead units, because .* fixed sizes"):
        shrink(model, None, ROWS)
