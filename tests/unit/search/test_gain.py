"""Gains that keep the signal's variance: their formula, their effect on a deep network, and the restored weights."""

import copy
import math

import pytest
import torch
from torch import nn

from crbg import find_ticket
from crbg.search.gain import scaled, variance_gains
from crbg.ticket import Ticket


def deep(depth: int = 8, width: int = 200) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_a_random_mask_keeps_the_variance_through_eight_layers(density):
    model = deep()
    gains = variance_gains(model, density)
    x = torch.randn(500, 200)
    with torch.no_grad():
        unscaled = float(model(x).var())
        with scaled(model, gains):
            for layer in model:
                layer.weight.mul_(torch.rand_like(layer.weight) < density)
            kept = float(model(x).var() / x.var())
    assert 0.5 < kept < 2
    assert unscaled < 1e-2  # without gains, torch's weights shrink the signal by 3 in each layer


def test_the_gain_of_a_layer_follows_its_fan_in_and_its_weights():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 5, 3), nn.Linear(7, 2), nn.Linear(3, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
        model[3].weight.zero_()
    expected = [1 / math.sqrt(0.2 * n * 0.25) for n in (2 * 9, 6 * 9, 7)]
    assert list(variance_gains(model, 0.2).values()) == pytest.approx([*expected, 1.0])


def test_weights_have_their_bytes_back_even_if_the_search_fails():
    model = deep(2, 5)
    before = copy.deepcopy(model.state_dict())

    def stop():
        with scaled(model, dict.fromkeys(before, 1 / 3)):
            assert not torch.equal(model[0].weight, before["0.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3))


@pytest.mark.parametrize(
    ("method", "options"),
    [("crbg", {}), ("edge_popup", {}), ("edge_popup", {"gain": "variance"}), ("concrete", {"gain": "variance"})],
)
def test_the_applied_and_the_loaded_ticket_are_the_network_of_the_search(method, options, tmp_path):
    torch.manual_seed(2)
    model, x = small(), torch.randn(64, 6)
    y, initial = x[:, :3].argmax(1), copy.deepcopy(model)
    found = find_ticket(model, [(x, y)] * 20, 0.4, method, epochs=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), initial.parameters(), strict=True))
    twin = copy.deepcopy(initial)
    for name, mask in found.mask.items():
        layer = twin.get_submodule(name.rpartition(".")[0])
        layer.weight.data.mul_(mask * found.weight_gain[name])
    applied = found.apply(copy.deepcopy(initial))
    assert torch.equal(applied(x), twin(x))
    assert not torch.allclose(applied(x), initial(x))
    found.ticket().save(tmp_path / "t.safetensors")
    assert torch.equal(Ticket.load(tmp_path / "t.safetensors").apply(initial)(x), twin(x))


def test_edge_popup_has_one_factor_and_not_two():
    x = torch.randn(64, 6)
    data, model = [(x, x[:, :3].argmax(1))], small()
    own, other = (find_ticket(model, data * 10, 0.25, "edge_popup", epochs=2, gain=g) for g in (None, "variance"))
    assert list(own.weight_gain.values()) == pytest.approx([2.0] * 3)
    assert other.weight_gain == variance_gains(model, 0.25)
