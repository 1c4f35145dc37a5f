import dataclasses

import pytest
import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.experiments.spec import Spec
from crbg.gates.attach import attach, attached_gates, sampling
from crbg.gates.gaussian import Gaussian
from crbg.measure import relaxation

SPEC = Spec("digits", "lenet-32-16", "crbg", 0.2, scale=0.5, epochs=4, batch=64, options={"noise": 0.2})


def batches():
    torch.manual_seed(1)
    return [(torch.randn(6, 5), torch.randint(0, 3, (6,))) for _ in range(3)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    return attach(net, lambda n, w: Gaussian(torch.rand_like(w), noise=0.0))


def test_both_losses_are_those_of_the_effective_weights(model):
    loss, gates = nn.functional.cross_entropy, attached_gates(model)
    raw = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = relaxation(model, batches(), loss, 0.25)
    every = torch.cat([g.mu.detach().flatten() for g in gates.values()])
    cut = every.sort(descending=True).values[round(0.25 * len(every)) - 1]

    def by_hand(factor):
        net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            for i, at in ((0, 0), (2, 3)):
                mu = gates[f"{at}.weight"].mu
                net[i].weight.copy_(raw[f"{at}.parametrizations.weight.original"] * factor(mu))
                net[i].bias.copy_(raw[f"{at}.bias"])
        return sum(float(loss(net(x), y)) for x, y in batches()) / 3

    assert found["relaxed"] == pytest.approx(by_hand(lambda mu: mu.clamp(0, 1)))
    assert found["binary"] == pytest.approx(by_hand(lambda mu: (mu >= cut).float()))
    assert found["relaxed"] != pytest.approx(found["binary"])
    assert all(torch.equal(p, raw[n]) for n, p in model.named_parameters())
    assert model.training


def test_generators_and_weights_are_as_before_even_after_an_error(model):
    for gate in attached_gates(model).values():
        gate.noise = 0.5
    raw = {n: p.detach().clone() for n, p in model.named_parameters()}
    pairs = batches()
    before, calls = torch.get_rng_state(), []

    def loss(out, y):
        calls.append(1)
        if len(calls) == 5:  # while the weights are masked
            raise ValueError
        return nn.functional.cross_entropy(out, y)

    with sampling(model), pytest.raises(ValueError):
        relaxation(model, pairs, loss, 0.25)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, raw[n]) for n, p in model.named_parameters())


def test_a_network_without_gates_has_nothing_to_compare():
    assert relaxation(nn.Linear(5, 3), batches(), nn.functional.cross_entropy, 0.5) == {}


def test_a_watched_search_finds_the_same_ticket(one_run):
    plain = one_run(SPEC).record
    seen = one_run(dataclasses.replace(SPEC, watch_images=100)).record
    assert seen.digests.mask == plain.digests.mask
    epochs = seen.anatomy["epochs"]
    assert len(epochs) == 4
    assert all({"relaxed", "binary", "undecided"} <= set(e) for e in epochs)
    assert not any("relaxed" in e for e in plain.anatomy["epochs"])


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(CrbgError, match="watch_images needs a density"):
        dataclasses.replace(SPEC, density=None, watch_images=10)
    with pytest.raises(CrbgError, match="watch_images needs one gate per weight"):
        dataclasses.replace(SPEC, options={"granularity": "unit"}, watch_images=10)
