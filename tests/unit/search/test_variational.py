import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from crbg import find_ticket, methods
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec
from crbg.measure.accuracy import accuracy
from crbg.models.initial_weights import initialise
from crbg.models.registry import build
from crbg.runs.execute import execute
from crbg.runs.setup import Workspace
from crbg.search.variational import Variational, kl, log_alpha, ramp
from crbg.training.clock import Clock, OutOfTime

SPEC = Spec("digits", "lenet-32-16", "sparse_vd", init="kaiming_normal", epochs=30, batch=64, options={"lr": 0.01})


def exact(alpha):
    """Return the KL divergence of N(theta, alpha theta^2) from the log-uniform prior, by numerical integration.

    It is E log|N(1, alpha)| - log(alpha) / 2 - E log|N(0, 1)| and approaches 0 for large alpha (pure noise).
    """
    sd = math.sqrt(alpha)

    def weighted(e):
        return math.exp(-((e - 1) ** 2) / (2 * alpha)) / (sd * math.sqrt(2 * math.pi)) * math.log(abs(e) + 1e-300)

    expected = quad(weighted, 1 - 12 * sd, 1 + 12 * sd, points=[0.0, 1.0], limit=400)[0]
    return expected - 0.5 * math.log(alpha) - 0.5 * (float(torch.special.digamma(torch.tensor(0.5))) + math.log(2.0))


@pytest.mark.parametrize("value", [-4.0, -2.0, 0.0, 2.0, 4.0])
def test_the_approximation_is_near_the_integral(value):
    found = float(kl(torch.tensor(value, dtype=torch.float64)))
    assert found == pytest.approx(exact(math.exp(value)), abs=0.02)


def test_the_divergence_falls_to_nothing_for_pure_noise():
    a = torch.linspace(-8, 8, 200, dtype=torch.float64)
    assert bool((kl(a).diff() < 0).all())
    assert float(kl(torch.tensor(8.0))) < 1e-3


def test_the_ramp_of_the_paper():
    found = [ramp(epoch / 200, 5 / 200, 20 / 200) for epoch in (4, 5, 12, 20, 100)]
    assert found == pytest.approx([0.0, 0.0, 7 / 15, 1.0, 1.0])


def test_log_alpha_is_clipped_and_needs_no_weight():
    theta = torch.tensor([0.0, 1.0, 1e-3])
    assert log_alpha(theta, torch.tensor([-10.0, -2.0, -10.0])).tolist() == pytest.approx(
        [8.0, -2.0, -10 - 2 * math.log(1e-3)]
    )


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Conv2d(2, 3, 3, stride=2, padding=1)], ids=["linear", "conv"])
def test_outputs_are_distributed_as_with_drawn_weights(layer):
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    x = torch.randn(1, 6) if isinstance(layer, nn.Linear) else torch.randn(1, 2, 5, 5)
    with Variational(model, start=-2.0, threshold=99.0) as noisy, torch.no_grad():
        local = torch.stack([model(x) for _ in range(6000)])
        model.eval()
        assert torch.equal(model(x), model(x))
        mean, noise = layer.weight.clone(), noisy.log_sigma2[0]
    drawn = []
    for _ in range(6000):
        layer.weight.data = mean + (0.5 * noise.detach()).exp() * torch.randn_like(mean)
        drawn.append(model(x).detach())
    drawn = torch.stack(drawn)
    assert torch.allclose(local.mean(0), drawn.mean(0), atol=0.08)
    assert torch.allclose(local.std(0), drawn.std(0), rtol=0.08)


def test_weights_beyond_the_threshold_leave_the_mean_and_keep_their_noise():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1e-3]])
    model = nn.Sequential(layer)
    x = torch.tensor([[1.0, 1.0]])
    with Variational(model, start=-4.0, threshold=3.0) as noisy, torch.no_grad():
        assert (noisy.log_alpha()["0.weight"] < 3).tolist() == [[True, False]]
        assert float(model.eval()(x)) == 1.0
        model.train()
        assert float(torch.stack([model(x) for _ in range(4000)]).std()) == pytest.approx(
            math.sqrt(2 * math.exp(-4)), rel=0.05
        )
    assert "forward" not in vars(layer)


def test_other_layers_are_refused():
    with pytest.raises(CrbgError, match=r"'0\.weight' belongs to a Bilinear"):
        Variational(nn.Sequential(nn.Bilinear(2, 2, 1)), -10.0, 3.0)


def search(digits, checkpoint=None, clock=None, spec=SPEC):
    model = build(spec.model, digits.in_shape, digits.classes)
    initialise(model, spec.init, spec.scale, 0)
    task = methods.SearchTask(
        BatchLoader(digits.train, spec.batch, 0),
        spec.density,
        spec.epochs,
        0,
        nn.functional.cross_entropy,
        checkpoint,
        clock,
    )
    return model, methods.get("sparse_vd").find(model, task, spec.resolved())


@pytest.mark.long
def test_it_finds_a_sparse_accurate_network_and_resumes_exactly(digits, tmp_path):
    model, found = search(digits)
    assert found.changed == dict.fromkeys(found.mask, "trained")
    assert found.mask.density < 0.5
    assert accuracy(model, digits.validation.batches(), found.mask) > 88
    with pytest.raises(OutOfTime):
        search(digits, tmp_path / "checkpoint.pt", Clock(stop_after=101))
    again, found_again = search(digits, tmp_path / "checkpoint.pt")
    assert found_again.history == found.history
    assert found_again.mask == found.mask
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_density_cannot_be_asked_for(digits):
    from dataclasses import replace

    with pytest.raises(CrbgError, match="determines the density itself"):
        search(digits, spec=replace(SPEC, density=0.1))


def test_its_record_says_that_weights_were_trained(digits, tmp_path):
    from dataclasses import replace

    record = execute(replace(SPEC, epochs=2), 0, Workspace(tmp_path, loaded={"digits": digits}))
    assert record.roles["trained"] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert record.validation.sanity is None


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_of_any_dimension_are_searched(layer):
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[layer]
    model = nn.Sequential(layer(2, 4, 3, groups=2), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(8, 2, *[5] * dimensions)
    model(x)
    found = find_ticket(model, (x, torch.arange(8) % 2), None, "sparse_vd", epochs=1, batch=4)
    assert set(found.mask) == {"0.weight", "2.weight"}


def test_other_layers_are_refused_before_the_search():
    model = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    data = (torch.randn(8, 1, 4, 4), torch.arange(8) % 2)
    with pytest.raises(CrbgError, match=r"'0\.weight' belongs to a ConvTranspose2d; leave it out with `where`"):
        find_ticket(model, data, None, "sparse_vd", epochs=1, batch=4)
    assert set(find_ticket(model, data, None, "sparse_vd", epochs=1, batch=4, where="2.*").mask) == {"2.weight"}
