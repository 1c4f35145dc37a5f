import pytest
import torch
from torch import nn

from crbg.gates.attach import attach, attached_gates
from crbg.gates.gaussian import Gaussian
from crbg.search.shared_steps import SharedSteps
from crbg.training.hooks import SearchHook


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4)).double()
    return attach(model, lambda n, w: Gaussian(torch.rand_like(w), noise=0.0))


class Spy(SearchHook):
    def __init__(self):
        self.calls = []

    def before_forward(self, progress):
        self.calls.append(("before", progress))

    def after_backward(self, progress):
        self.calls.append(("backward", progress))

    def after_step(self, progress):
        self.calls.append(("step", progress))

    def log(self):
        return {"seen": float(len(self.calls))}


def search(net, optimiser_of, rate, hook_of, steps=3):
    """Take some steps on a fixed batch and return mu of both layers."""
    gates = list(attached_gates(net).values())
    hook = hook_of(gates)
    groups = [{"params": [g.mu for g in gates], "lr": 0.1}]
    if isinstance(hook, SharedSteps):
        groups.append({"params": list(hook.parameters()), "lr": rate})
    optimiser = optimiser_of(groups)
    torch.manual_seed(1)
    x = torch.randn(5, 2, 2, 2, dtype=torch.double)
    for _ in range(steps):
        hook.before_forward(0.0)
        optimiser.zero_grad()
        net(x).square().sum().backward()
        hook.after_backward(0.0)
        optimiser.step()
        hook.after_step(0.0)
    return gates, optimiser


def test_the_sum_of_own_row_and_column_parameters_is_searched(net):
    """Plain gradient descent on separate parameters gives the same mu as the shared steps."""
    gates = list(attached_gates(net).values())
    own = [g.mu.detach().clone() for g in gates]
    parts = [[torch.zeros(g.mu.shape[axis], dtype=torch.double) for axis in (0, 1)] for g in gates]
    torch.manual_seed(1)
    x = torch.randn(5, 2, 2, 2, dtype=torch.double)
    for _ in range(3):
        for g, mu, (row, column) in zip(gates, own, parts, strict=True):
            tail = [1] * (g.mu.ndim - 2)
            g.mu.data = mu + row.reshape(-1, 1, *tail) + column.reshape(1, -1, *tail)
        net.zero_grad()
        net(x).square().sum().backward()
        for g, mu, (row, column) in zip(gates, own, parts, strict=True):
            mu -= 0.1 * g.mu.grad
            row -= 0.02 * g.mu.grad.flatten(1).sum(1)
            column -= 0.02 * g.mu.grad.transpose(0, 1).flatten(1).sum(1)
    tail = [[1] * (mu.ndim - 2) for mu in own]
    expected = [
        mu + row.reshape(-1, 1, *t) + column.reshape(1, -1, *t)
        for mu, (row, column), t in zip(own, parts, tail, strict=True)
    ]
    torch.manual_seed(0)
    fresh = attach(
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4)).double(),
        lambda n, w: Gaussian(torch.rand_like(w), noise=0.0),
    )
    found, _ = search(fresh, torch.optim.SGD, 0.02, lambda gates: SharedSteps(SearchHook(), gates))
    for gate, mu in zip(found, expected, strict=True):
        torch.testing.assert_close(gate.mu.detach(), mu)


def test_parameters_of_rows_and_columns_are_zero_before_each_step(net):
    hooks = []
    search(net, torch.optim.Adam, 0.05, lambda gates: hooks.append(SharedSteps(SearchHook(), gates)) or hooks[0])
    assert [tuple(p.shape) for p in hooks[0].parameters()] == [(3,), (2,), (4,), (3,)]
    assert not any(p.any() for p in hooks[0].parameters())


def test_gates_of_a_vector_share_no_steps():
    assert not list(SharedSteps(SearchHook(), [Gaussian(torch.rand(5))]).parameters())


def test_the_inner_hook_runs_as_without_shared_steps():
    spy = Spy()
    hook = SharedSteps(spy, [])
    hook.before_forward(0.1)
    hook.after_backward(0.2)
    hook.after_step(0.3)
    assert spy.calls == [("before", 0.1), ("backward", 0.2), ("step", 0.3)]
    assert hook.log() == {"seen": 3.0}
    assert hook.state_dict() == spy.state_dict()
