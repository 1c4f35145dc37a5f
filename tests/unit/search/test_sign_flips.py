import pytest
import torch
from torch import nn

from crbg import methods
from crbg.gates.attach import attach, attached_gates, weights
from crbg.gates.gaussian import Gaussian
from crbg.search.sign_flips import SignFlips
from crbg.training.hooks import SearchHook

STEPS = 40


class Counter(SearchHook):
    def __init__(self):
        self.smallest = []

    def after_step(self, progress):
        self.smallest.append(min(float(g.mu.min()) for g in self.gates))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(16, 4, dtype=torch.double), torch.randn(16, 2, dtype=torch.double)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def test_the_search_equals_one_of_gates_between_minus_one_and_one(batch):
    x, y = batch
    plain = network()
    mu = {n: torch.rand_like(p, requires_grad=True) for n, p in plain.named_parameters() if p.ndim == 2}
    start = {n: m.detach().clone() for n, m in mu.items()}
    adam = torch.optim.Adam(mu.values(), lr=0.1)
    for _ in range(STEPS):
        adam.zero_grad()
        values = {n: plain.get_parameter(n).detach() * m.clamp(-1, 1) for n, m in mu.items()}
        (torch.func.functional_call(plain, values, x) - y).square().mean().backward()
        adam.step()

    model = attach(network(), lambda n, w: Gaussian(start[n].clone(), noise=0.0))
    gates, raw, inner = attached_gates(model), weights(model), Counter()
    before = {n: w.detach().clone() for n, w in raw.items()}
    inner.gates = list(gates.values())
    adam = torch.optim.Adam([g.mu for g in gates.values()], lr=0.1)
    hook = SignFlips(inner, list(raw.values()), list(gates.values()), adam)
    for _ in range(STEPS):
        adam.zero_grad()
        (model(x) - y).square().mean().backward()
        adam.step()
        hook.after_step(0.0)
    for n, gate in gates.items():
        sign = raw[n] / before[n]
        assert set(sign.flatten().tolist()) == {-1.0, 1.0}
        torch.testing.assert_close(sign * gate.mu.detach(), mu[n].detach())
    assert len(inner.smallest) == STEPS  # the controller runs after the flips, so it sees no negative gate
    assert min(inner.smallest) >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.1}, "set `options.noise` to 0"),
        ({"noise": 0.0, "steer": "shift"}, "set `options.steer` to `penalty`"),
        ({"noise": 0.0, "granularity": "unit"}, "set `options.granularity` to `weight`"),
        ({"noise": 0.0, "joint_lr": 0.1}, "leave `pretrain`, `joint_lr` and `finetune` at 0"),
    ],
)
def test_options_that_do_not_go_with_signs_are_refused(options, message):
    chosen = methods.get("crbg").Options(signed=True, **options)
    assert any(message in text for text in methods.conflicts("crbg", chosen, 0.1))
