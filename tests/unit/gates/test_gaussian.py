import math

import pytest
import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, bypass, sampling
from crbg.gates.base import Columns, Fixed
from crbg.gates.gaussian import Gaussian, Units
from crbg.gates.scores import TopK

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def drawing(gate):
    gate.sampling = True
    return gate


def draws_nothing(run):
    before = torch.get_rng_state()
    run()
    return torch.equal(before, torch.get_rng_state())


# Gaussian -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "noise"), [(0.5, 0.5), (0.1, 0.3), (-0.4, 0.5), (0.9, 0.2), (0.3, 1.0)])
@pytest.mark.parametrize("source", ["normal", "antithetic"])
def test_the_share_of_open_gates_is_the_probability_it_says(mu, noise, source):
    n = 200_000
    gate = drawing(Gaussian(torch.full((n,), mu), noise=noise, source=source))
    torch.manual_seed(0)
    if source == "antithetic":
        gate(torch.ones(n))  # skip to the second sample, which is the negative of the first
    p = gate.open_probability()[0].item()
    assert p == pytest.approx(0.5 * (1 + math.erf(mu / noise / math.sqrt(2))), abs=1e-6)
    share = (gate(torch.ones(n)) > 0).double().mean().item()
    assert abs(share - p) < 3 * math.sqrt(p * (1 - p) / n)


ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize(("leak", "shape"), [(0.0, (40, 30)), (0.25, (7,)), (0.0, (4, 3, 5, 5))])
def test_noise_drawn_again_gives_the_same_gradients_and_keeps_nothing(leak, shape, device, monkeypatch):
    w = torch.randn(shape).to(memory_format=torch.channels_last) if len(shape) == 4 else torch.randn(shape)
    w = w.to(device).requires_grad_(True)
    state = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state
    outcomes, kept = [], []
    for kinds in ((), (device,)):
        monkeypatch.setattr(Gaussian, "redraws", kinds)
        gate = drawing(Gaussian(torch.full_like(w.detach(), 0.5), noise=0.5, leak=leak))
        torch.manual_seed(1)
        w.grad = None
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = gate(w).square()
        before = state()
        out.sum().backward()
        assert torch.equal(before, state()), "the backward pass leaves the global generator alone"
        outcomes.append((out.detach(), gate.mu.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    own = {gate.mu.data_ptr(), w.data_ptr()}
    assert len([t for t in kept if t.data_ptr() not in own]) == 1, "the squared output alone"


def test_every_forward_draws_anew():
    gate = drawing(Gaussian(torch.full((100,), 0.5)))
    w = torch.ones(100)
    torch.manual_seed(0)
    first, second = gate(w), gate(w)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(gate(w), first)


def twin(mu, w, eps, noise):
    """Compute the gate with plain autograd; the clip has slope 1 strictly inside (0, 1) and slope 0 elsewhere."""
    u = mu + noise * eps
    return w * torch.where((u > 0) & (u < 1), u, u.detach().clamp(0, 1))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_product_and_both_gradients_are_those_of_plain_autograd(noise):
    mu0, w0, g = 0.5 + randn(7, 5), randn(7, 5, seed=1), randn(7, 5, seed=2)
    mu0[0, :4] = torch.tensor([0.0, 1.0, 1e-9, 1 - 1e-9], dtype=F64)
    gate, w = drawing(Gaussian(mu0, noise=noise)), w0.clone().requires_grad_()
    torch.manual_seed(3)
    out = gate(w)
    out.backward(g)
    torch.manual_seed(3)
    eps = torch.randn_like(mu0) if noise else torch.zeros_like(mu0)
    mu2, w2 = mu0.clone().requires_grad_(), w0.clone().requires_grad_()
    expected = twin(mu2, w2, eps, noise)
    expected.backward(g)
    assert torch.equal(out, expected)
    assert torch.equal(gate.mu.grad, mu2.grad)
    assert torch.equal(w.grad, w2.grad)
    assert 0 < (gate.mu.grad == 0).sum() < gate.mu.numel()
    if not noise:
        assert gate.mu.grad[0, :2].tolist() == [0.0, 0.0]


def test_the_gradients_match_finite_differences():
    gate = Gaussian(torch.zeros(6))
    w0, mu0 = randn(6, seed=1), torch.tensor([-0.3, 0.2, 0.5, 0.8, 1.4, 0.01], dtype=F64)

    def value(mu, w):
        return torch.func.functional_call(gate, {"mu": mu}, (w,))

    assert torch.autograd.gradcheck(value, (mu0.requires_grad_(), w0.requires_grad_()))


def test_a_frozen_weight_gets_no_gradient_and_mu_does():
    gate, w = drawing(Gaussian(torch.full((4,), 0.5))), torch.ones(4)
    gate(w).sum().backward()
    assert w.grad is None
    assert gate.mu.grad is not None


def test_nothing_is_drawn_without_sampling_or_without_noise():
    w = torch.ones(3, 2)
    quiet = [
        Gaussian(torch.full((3, 2), 0.3)),
        drawing(Gaussian(torch.full((3, 2), 0.3), noise=0.0)),
        Units(torch.full((2,), 0.3)),
    ]
    quiet += [drawing(Units(torch.full((2,), 0.3), noise=0.0)), Gaussian(torch.full((3, 2), 0.3), learn_sigma=True)]
    for gate in quiet:
        assert draws_nothing(lambda gate=gate: gate(w))
        assert torch.equal(gate(w), torch.full((3, 2), 0.3))
    assert not draws_nothing(lambda: drawing(Gaussian(torch.zeros(3, 2)))(w))


def test_train_and_eval_are_the_same_to_a_gate():
    for on in (False, True):
        gate, w = Gaussian(torch.full((50,), 0.5)), torch.ones(50)
        gate.sampling = on
        out = []
        for train in (True, False):
            torch.manual_seed(0)
            out.append(gate.train(train)(w))
        assert torch.equal(*out)


def test_the_second_antithetic_draw_mirrors_the_first():
    gate = Gaussian(torch.zeros(1000), source="antithetic")
    torch.manual_seed(0)
    a, b, c, d = (gate.draw().clone() for _ in range(4))
    assert torch.equal(b, -a)
    assert torch.equal(d, -c)
    assert not torch.equal(c, a)
    torch.manual_seed(0)
    assert torch.equal(a, torch.randn(1000))
    gate.draw()
    assert draws_nothing(gate.draw)


def test_a_checkpoint_on_the_cpu_is_taken_up_on_the_gates_device():
    gate = Gaussian(torch.empty(3, device="meta"), source="antithetic")
    gate.set_extra_state({"held": torch.ones(3), "noise": 0.1})
    assert gate.held.device.type == "meta"  # represents any device other than the CPU


@pytest.mark.parametrize("drawn", [1, 2])
def test_antithetic_state_goes_on_where_it_was_saved(drawn):
    gate = Gaussian(torch.zeros(20), source="antithetic")
    torch.manual_seed(0)
    for _ in range(drawn):
        gate.draw()
    state, noise = gate.state_dict(), torch.get_rng_state()
    expected = [gate.draw().clone() for _ in range(3)]
    other = Gaussian(torch.ones(20), noise=0.1, source="antithetic")
    other.load_state_dict(state)
    torch.set_rng_state(noise)
    assert other.noise == 0.5
    assert torch.equal(other.mu, gate.mu)
    assert all(torch.equal(other.draw(), e) for e in expected)


def test_learnt_sigma_gets_the_reparametrised_gradient():
    mu0, w, g = 0.5 + randn(40), randn(40, seed=1), randn(40, seed=2)
    gate = drawing(Gaussian(mu0, noise=0.4, learn_sigma=True).double())
    torch.manual_seed(5)
    out = gate(w)
    out.backward(g)
    torch.manual_seed(5)
    eps, mu = torch.randn_like(mu0), mu0.clone().requires_grad_()
    log_sigma = torch.tensor(math.log(0.4), dtype=torch.float32).double().requires_grad_()
    expected = w * (mu + log_sigma.exp() * eps).clamp(0, 1)
    expected.backward(g)
    assert torch.equal(out, expected)
    torch.testing.assert_close(gate.mu.grad, mu.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(gate.log_sigma.grad, log_sigma.grad, rtol=1e-12, atol=0)
    assert gate.log_sigma.grad != 0
    assert gate.sigma() == pytest.approx(0.4)


def test_a_learnt_sigma_changes_the_open_probability():
    gate = Gaussian(torch.tensor([0.5]), noise=0.5, learn_sigma=True)
    before = gate.open_probability().item()
    with torch.no_grad():
        gate.log_sigma += 1.0
    assert before == pytest.approx(0.841344746, abs=1e-6)
    assert gate.open_probability().item() == pytest.approx(0.5 * (1 + math.erf(1 / math.e / math.sqrt(2))), abs=1e-6)


def test_readings_of_a_gate():
    gate = Gaussian(torch.tensor([-1.0, 0.0, 0.25, 1.0, 3.0]))
    assert gate.scores().tolist() == [-1.0, 0.0, 0.25, 1.0, 3.0]
    assert gate.soft().tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert Gaussian(gate.mu, noise=0.0).open_probability().tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_gate_keeps_its_own_copy_of_mu():
    start = torch.full((3,), 0.5)
    gate = Gaussian(start)
    start.fill_(9.0)
    assert gate.mu.tolist() == [0.5] * 3
    assert [n for n, _ in gate.named_parameters()] == ["mu"]
    assert [n for n, _ in Gaussian(start, learn_sigma=True).named_parameters()] == ["mu", "log_sigma"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, "noise -0.1 must be >= 0"),
        ({"penalty_sigma": 0.0}, "penalty_sigma 0.0 must be > 0"),
        ({"source": "antithetik"}, "did you mean 'antithetic'"),
        ({"noise": 0.0, "learn_sigma": True}, "needs an initial noise above 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(CrbgError, match=message):
        Gaussian(torch.zeros(2), **options)


def test_what_draws_nothing_has_no_open_probability():
    for gate in (Fixed(torch.ones(2)), TopK(torch.ones(2), 1)):
        with pytest.raises(CrbgError, match="no open probability"):
            gate.open_probability()


@pytest.mark.parametrize(
    "gate",
    [Gaussian(torch.zeros(2, 3)), Units(torch.zeros(3)), Fixed(torch.zeros(2, 3)), TopK(torch.ones(2, 3), 1)],
    ids=lambda g: type(g).__name__,
)
def test_a_bypassed_gate_returns_the_weight_itself(gate):
    w = torch.ones(2, 3)
    gate.bypassed = gate.sampling = True
    assert draws_nothing(lambda: gate(w))
    assert gate(w) is w
    gate.bypassed = False
    assert gate(w) is not w


# Units --------------------------------------------------------------------------------------------------------------


def test_gating_columns_is_multiplying_the_activation_of_the_unit():
    first, act, second = nn.Linear(6, 5, dtype=F64), nn.PReLU(5, dtype=F64), nn.Linear(5, 3, dtype=F64)
    x, mu = randn(8, 6), torch.tensor([0.0, 0.3, 1.0, -2.0, 0.7], dtype=F64)
    hidden = act(first(x)) * mu.clamp(0, 1)
    expected = second(hidden)
    net = attach(nn.Sequential(first, act, second), lambda n, w: Units(mu), "2.weight")
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_a_channel_flattened_into_a_linear_layer_spans_its_columns():
    conv, act, linear = nn.Conv2d(2, 4, 3, dtype=F64), nn.PReLU(4, dtype=F64), nn.Linear(4 * 9, 3, dtype=F64)
    x, mu = randn(5, 2, 5, 5), torch.tensor([0.2, 1.0, 0.0, 0.6], dtype=F64)
    expected = linear((act(conv(x)) * mu[None, :, None, None]).flatten(1))
    net = attach(nn.Sequential(conv, act, nn.Flatten(), linear), lambda n, w: Units(mu), "3.weight")
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_units_gate_the_input_channels_of_a_convolution():
    a, b = nn.Conv2d(2, 4, 3, dtype=F64), nn.Conv2d(4, 3, 3, padding=1, dtype=F64)
    x, mu = randn(5, 2, 5, 5), torch.tensor([0.2, 1.0, 0.0, 0.6], dtype=F64)
    expected = b(a(x) * mu[None, :, None, None])
    net = attach(nn.Sequential(a, b), lambda n, w: Units(mu), "1.weight")
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_hard_units_are_binary_with_straight_through_gradients():
    gate, w, upstream = Units(torch.tensor([0.4, 0.6, 2.0])), randn(4, 6), randn(4, 6)
    gate.hard = True
    effective = gate(w)
    assert torch.equal(effective, w * torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    effective.backward(upstream)
    expected = (upstream * w).reshape(4, 3, 2).sum((0, 2))  # closed units receive a gradient, too
    torch.testing.assert_close(gate.mu.grad, expected.float())


def test_columns_repeat_each_unit_over_its_span():
    assert Columns().expand(torch.tensor([1, 2, 3]), torch.empty(4, 6)).tolist() == [[1, 1, 2, 2, 3, 3]]
    assert Columns().expand(torch.tensor([1, 2]), torch.empty(4, 2, 3, 3)).shape == (1, 2, 1, 1)
    for units in (4, 7, 12):
        with pytest.raises(CrbgError, match=f"6 input columns, which is not a multiple of the {units} units"):
            Columns().expand(torch.zeros(units), torch.empty(4, 6))


def test_unit_gates_are_a_vector():
    with pytest.raises(CrbgError, match="must be a vector"):
        Units(torch.zeros(2, 3))


class Residual(nn.Module):
    """Two layers that read the same residual stream."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4, dtype=F64), nn.Linear(5, 4, dtype=F64)

    def forward(self, x):
        return self.a(x) + self.b(x).square()


def test_a_shared_unit_gate_draws_once_and_gets_the_sum_of_both_gradients():
    torch.manual_seed(0)
    net, x, mu0 = Residual(), randn(9, 5), 0.5 + 0.2 * randn(5, seed=4)
    a, b = net.a.weight.detach().clone(), net.b.weight.detach().clone()
    unit = Units(mu0)
    attach(net, lambda n, w: unit)
    assert set(attached_gates(net)) == {"a.weight", "b.weight"}
    with sampling(net):
        for seed in (1, 2):  # every forward pass samples new noise
            unit.mu.grad = None
            torch.manual_seed(seed)
            out = net(x)
            after = torch.get_rng_state()
            out.sum().backward()
            torch.manual_seed(seed)
            mu = mu0.clone().requires_grad_()
            z = (mu + 0.5 * torch.randn_like(mu)).clamp(0, 1)
            assert torch.equal(after, torch.get_rng_state())
            expected = nn.functional.linear(x, a * z, net.a.bias) + nn.functional.linear(x, b * z, net.b.bias).square()
            expected.sum().backward()
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(unit.mu.grad, mu.grad, rtol=1e-10, atol=0)
    with bypass(net):
        torch.testing.assert_close(
            net(x),
            nn.functional.linear(x, a, net.a.bias) + nn.functional.linear(x, b, net.b.bias).square(),
            rtol=0,
            atol=0,
        )


def test_a_unit_gate_with_one_consumer_draws_at_each_read():
    net = attach(nn.Sequential(nn.Linear(5, 3)), lambda n, w: Units(torch.full((5,), 0.5)))
    with sampling(net):
        torch.manual_seed(0)
        assert not torch.equal(net(torch.ones(1, 5)), net(torch.ones(1, 5)))
