import pytest
import torch
from torch import nn

from crbg import find_ticket, methods
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates
from crbg.gates.base import Columns
from crbg.gates.product import Product
from crbg.search.density_controller import Controlled, Plan
from crbg.search.product_penalty import ProductPenalty, by_input


def phi(x):
    return torch.special.ndtr(x)


@pytest.fixture
def gate():
    torch.manual_seed(0)
    return Product(torch.rand(4, 6, dtype=torch.double) * 1.4 - 0.2, torch.rand(3, dtype=torch.double) * 1.4 - 0.2)


def wide(nu):
    return nu.repeat_interleave(2)[None]  # six columns, two for each input


def test_values_and_gradients_are_those_of_the_product(gate):
    w = torch.randn(4, 6, dtype=torch.double)
    mu, nu = (p.detach().clone().requires_grad_(True) for p in (gate.mu, gate.nu))
    for hard in (False, True):
        gate.hard = hard
        gate.zero_grad()
        out = gate(w)
        a, b = ((mu > 0.5).double(), (nu > 0.5).double()) if hard else (mu.clamp(0, 1), nu.clamp(0, 1))
        torch.testing.assert_close(out, w * a * wide(b))
        out.cos().sum().backward()
        # Hard gates have straight-through gradients: those of a product of values that equal the hard ones.
        a, b = ((a.detach() - mu).detach() + mu, (b.detach() - nu).detach() + nu) if hard else (a, b)
        expected = torch.autograd.grad((w * a * wide(b)).cos().sum(), [mu, nu])
        torch.testing.assert_close([gate.mu.grad, gate.nu.grad], list(expected))


def test_a_weight_is_kept_if_both_gates_are_open(gate):
    both = (gate.mu > 0.5) & (wide(gate.nu) > 0.5)
    assert torch.equal(gate.opened(), both)
    assert torch.equal(gate.scores() > 0.5, both)
    assert torch.equal(gate.soft(), gate.mu.clamp(0, 1) * wide(gate.nu.clamp(0, 1)))


@pytest.mark.parametrize(
    ("columns", "shape"), [(Columns(), (4, 6, 2)), (Columns(0), (6, 4)), (Columns(1, 2), (4, 3, 2))]
)
def test_sums_over_the_weights_of_an_input(columns, shape):
    gate = Product(torch.zeros(shape), torch.zeros(6))
    gate.columns = columns
    values = torch.rand(shape)
    sums = torch.zeros(6)
    for j in range(6):
        one = torch.zeros(6)
        one[j] = 1
        sums[j] = (gate.units(one) * values).sum()
    torch.testing.assert_close(by_input(gate, values), sums)


def test_the_penalty_has_the_gradient_of_the_open_probability():
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(6, 4, bias=False)), lambda n, w: Product(torch.rand_like(w), torch.rand(6)))
    (gate,) = attached_gates(model).values()
    hook = ProductPenalty(Controlled(model, "induce_sparse", 0.01, Plan(firmness=0.0)), 0.5)
    gate.mu.grad, gate.nu.grad = torch.full((4, 6), 1e-3), torch.zeros(6)
    hook.before_forward(0.9)
    hook.after_backward(0.9)
    mu, nu, s = gate.mu.detach().requires_grad_(True), gate.nu.detach().requires_grad_(True), gate.penalty_sigma
    expected = torch.autograd.grad((phi(mu / s) * phi(nu / s)).sum(), [mu, nu])
    assert hook.inner.pull > 0
    torch.testing.assert_close((gate.mu.grad - 1e-3) / hook.inner.pull, expected[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gate.nu.grad / hook.inner.pull, 0.5 * expected[1], rtol=1e-3, atol=1e-6)


def test_a_search_reaches_its_density_and_closes_inputs():
    torch.manual_seed(0)
    x, y = torch.randn(300, 20), torch.arange(300) % 3
    x[:, 3] += 3 * y
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    options = {"noise": 0.0, "steer": "penalty", "product": 1.0, "source": "normal"}
    found = find_ticket(model, (x, y), 0.1, epochs=30, batch=30, **options)
    assert found.mask.density == pytest.approx(0.1, rel=0.02)
    used = found.mask["0.weight"].any(0)
    assert bool(used[3])
    assert int(used.sum()) < 20


def test_what_does_not_go_with_product_gates_is_refused():
    chosen = methods.get("crbg").Options(product=1.0, noise=0.1)
    assert any("crbg.product needs a density" in text for text in methods.conflicts("crbg", chosen, 0.1))
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight[0, 0] = 0
    data = (torch.randn(30, 6), torch.arange(30) % 3)
    with pytest.raises(CrbgError, match="product gates need weights that are not zero"):
        find_ticket(model, data, 0.5, epochs=1, noise=0.0, steer="penalty", product=1.0)
