import math

import pytest
import torch

from crbg.gates.concrete import Concrete, HardConcrete
from crbg.gates.scores import Rounded, Sampled

# --- gates against plain loops ---


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def gradient(gate, w, parameter, back):
    """Return the effective weight and the gradient of `parameter`; `back` is the gradient of the effective weight."""
    out = gate(w)
    parameter.grad = None
    out.backward(back)
    return out.detach(), parameter.grad


W, BACK = tensor(0.5, -1.0, 2.0, -0.25), tensor(1.0, 2.0, -3.0, 4.0)


@pytest.mark.parametrize("rescale", [False, True])
def test_supermask_draws_bernoulli_masks_and_passes_the_slope_of_the_probability(rescale):
    v = tensor(-1.0, 0.0, 1.0, 2.0)
    gate = Sampled(v, rescale)
    gate.sampling = True
    torch.manual_seed(3)
    out, slope = gradient(gate, W, gate.v, BACK)
    torch.manual_seed(3)
    u = torch.rand(4, dtype=torch.float64)
    p = [1 / (1 + math.exp(-float(x))) for x in v]
    mask = [float(a) < b for a, b in zip(u, p, strict=True)]
    gain = 4 / sum(mask) if rescale else 1.0
    assert 0 < sum(mask) < 4
    # The gain of the gate uses the expected number of kept weights.
    assert gate.gain == pytest.approx(4 / sum(p) if rescale else 1.0)
    assert out.tolist() == pytest.approx([gain * float(w) * m for w, m in zip(W, mask, strict=True)])
    # Dropped weights receive a gradient too.
    assert slope.tolist() == pytest.approx(
        [gain * float(b * w) * q * (1 - q) for b, w, q in zip(BACK, W, p, strict=True)]
    )


def test_gem_miner_rounds_and_hears_dropped_weights_but_not_those_given_up():
    gate = Rounded(tensor(0.2, 0.6, 0.9, 0.4))
    gate.alive &= torch.tensor([True, False, True, True])
    out, slope = gradient(gate, W, gate.p, BACK)
    assert out.tolist() == [0.0, 0.0, 2.0, 0.0]
    assert slope.tolist() == [0.5, 0.0, -6.0, -1.0]
    assert gate.scores().argsort(descending=True).tolist() == [2, 3, 0, 1]


def logistic(u):
    return math.log(u) - math.log(1 - u)


@pytest.mark.parametrize("kind", ["concrete", "hard"])
def test_relaxed_gates_against_a_loop_and_finite_differences(kind):
    a = tensor(-2.0, -0.5, 0.3, 1.5)
    gate = (Concrete if kind == "concrete" else HardConcrete)(a)

    def z(x, noise):
        if kind == "concrete":
            return 1 / (1 + math.exp(-(x + noise / (2 / 3))))
        s = 1 / (1 + math.exp(-(x + noise) / (2 / 3)))
        return min(1.0, max(0.0, s * 1.2 - 0.1))

    gate.sampling = True
    torch.manual_seed(5)
    out, slope = gradient(gate, W, gate.logit, BACK)
    torch.manual_seed(5)
    noise = [logistic(float(u)) for u in torch.rand(4, dtype=torch.float64)]
    assert out.tolist() == pytest.approx([float(w) * z(float(x), n) for w, x, n in zip(W, a, noise, strict=True)])
    h = 1e-6
    wanted = [
        float(b * w) * (z(float(x) + h, n) - z(float(x) - h, n)) / (2 * h)
        for b, w, x, n in zip(BACK, W, a, noise, strict=True)
    ]
    assert slope.tolist() == pytest.approx(wanted, abs=1e-6)
    # Without noise, the gates equal the CTS gate with L = 0 and the L0 gate at test time.
    gate.sampling = False
    plain = [1 / (1 + math.exp(-float(x))) for x in a]
    wanted = plain if kind == "concrete" else [min(1.0, max(0.0, p * 1.2 - 0.1)) for p in plain]
    assert gate.soft().tolist() == pytest.approx(wanted)
    assert gate(W).tolist() == pytest.approx([float(w) * p for w, p in zip(W, wanted, strict=True)])


@pytest.mark.parametrize(("kind", "threshold"), [(Concrete, 0.5), (HardConcrete, 0.0)])
def test_open_probabilities_are_those_of_the_draws(kind, threshold):
    """Concrete gates count towards the budget by their noise-free value, hard-concrete gates by P(z > 0)."""
    a = torch.full((20000,), -1.2)
    gate = kind(a)
    gate.sampling = True
    torch.manual_seed(0)
    share = float((gate(torch.ones_like(a)) > threshold).double().mean())
    assert share == pytest.approx(float(gate.open_probability()[0]), abs=0.015)
    if kind is Concrete:
        assert float(gate.expected()[0]) == pytest.approx(1 / (1 + math.exp(1.2)))
        assert float(gate.expected()[0]) < share - 0.05
    else:
        assert HardConcrete.shift == pytest.approx(1.5986, abs=1e-4)
        assert float(gate.expected()[0]) == pytest.approx(share, abs=0.015)
