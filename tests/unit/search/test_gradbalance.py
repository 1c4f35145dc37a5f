import math

import pytest
import torch

from crbg.gates.concrete import Bernoulli, Clipped, Concrete, HardConcrete
from crbg.gates.scores import Rounded, TopK
from crbg.search.gradbalance import GemMinerPruning, GlobalThreshold, GradBalance, Lagrange


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- hooks ---


def test_gradbalance_weighs_the_budget_like_the_task_and_remembers():
    gates = [Concrete(tensor(0.0, 1.0)), Concrete(tensor(2.0))]
    hook = GradBalance(gates, keep=1, slack=1.1)
    p = [1 / (1 + math.exp(-x)) for x in (0.0, 1.0, 2.0)]
    slopes = [q * (1 - q) / 1.1 for q in p]
    task = [3.0, 0.0, 4.0]

    def step(over):
        for g, values in zip(gates, (task[:2], task[2:]), strict=True):
            g.logit.grad = tensor(*values)
        hook.target = 1.1 if over else 99.0
        hook.after_backward(0.0)

    step(over=True)
    star = 5.0 / math.sqrt(sum(s * s for s in slopes))
    assert hook.weight == pytest.approx(star)
    found = [*gates[0].logit.grad.tolist(), *gates[1].logit.grad.tolist()]
    assert found == pytest.approx([t + star * s for t, s in zip(task, slopes, strict=True)])
    step(over=False)  # under budget, lambda* is 0, and lambda decreases by 1 %
    assert hook.weight == pytest.approx(0.99 * star)
    other = GradBalance(gates, keep=1)
    other.load_state_dict(hook.state_dict())
    assert other.weight == hook.weight


def test_one_threshold_falls_to_the_density_of_all_layers_together():
    torch.manual_seed(0)
    gates = [TopK(torch.randn(30), 3), TopK(0.1 * torch.randn(70), 7)]
    hook = GlobalThreshold(gates, density=0.1, reach=0.5)
    every = torch.cat([g.scores() for g in gates]).sort(descending=True).values
    for progress, kept in ((0.0, 100), (0.25, 55), (0.5, 10), (0.9, 10)):
        hook.before_forward(progress)
        masks = [g(torch.ones_like(g.score)) != 0 for g in gates]
        assert sum(int(m.sum()) for m in masks) == kept
        assert all(torch.equal(m, g.scores() >= every[kept - 1]) for m, g in zip(masks, gates, strict=True))
    assert int(masks[0].sum()) > 3 * int(masks[1].sum())  # the layer with small scores keeps fewer


def test_gem_miner_gives_up_the_lowest_of_what_is_left_and_ends_at_the_asked_number():
    torch.manual_seed(0)
    gates = [Rounded(torch.rand(60)), Rounded(torch.rand(40))]
    hook = GemMinerPruning(gates, keep=10, periods=3, decay=0.0)
    left = []
    for progress in (0.0, 0.2, 0.25, 0.5, 0.74, 0.75, 0.99):
        hook.before_forward(progress)
        left.append(sum(int(g.alive.sum()) for g in gates))
    assert left == [100, 100, 46, 22, 22, 10, 10]  # round(100 * 0.1 ** (i / 3)) after round i
    every = torch.cat([g.p.detach() for g in gates])
    alive = torch.cat([g.alive for g in gates])
    assert every[alive].min() > every[~alive].max()
    for g in gates:
        g.p.data += 5.0
    hook.after_step(0.99)
    assert max(float(g.p.detach().max()) for g in gates) == 1.0


def test_gem_miner_pulls_scores_towards_zero():
    gate = Rounded(tensor(0.4, 0.8))
    gate.p.grad = tensor(1.0, 1.0)
    GemMinerPruning([gate], keep=1, periods=1, decay=0.5).after_backward(0.0)
    assert gate.p.grad.tolist() == pytest.approx([1.2, 1.4])


# --- budgets of other gates, and the multiplier ---


def test_a_clipped_gate_is_above_a_half_as_often_as_its_budget_says():
    torch.manual_seed(0)
    for p in (0.02, 0.3):
        gate = Clipped.at(p, torch.zeros(200_000), 0.4)
        gate.sampling = True
        drawn = gate(torch.ones(200_000)).detach()
        assert float(gate.expected().mean()) == pytest.approx(p, rel=1e-4)
        assert float((drawn > 0.5).double().mean()) == pytest.approx(p, abs=3 * math.sqrt(p * (1 - p) / 200_000))


@pytest.mark.parametrize("tau", [2 / 3, 2.0])
def test_a_bernoulli_budget_counts_what_is_above_a_half(tau):
    torch.manual_seed(0)
    gate = Bernoulli(torch.full((200_000,), Bernoulli.start(0.1, tau)), tau)
    gate.sampling = True
    assert float(gate.expected().mean()) == pytest.approx(0.1, rel=1e-4)
    assert float((gate(torch.ones(200_000)).detach() > 0.5).double().mean()) == pytest.approx(
        0.1, abs=3 * math.sqrt(0.09 / 200_000)
    )
    plain = Concrete(torch.full((200_000,), Concrete.start(0.1)))
    plain.sampling = True
    assert float((plain(torch.ones(200_000)).detach() > 0.5).double().mean()) > 0.15  # the authors' count gives 0.1


@pytest.mark.parametrize("kind", ["clipped", "bernoulli", "concrete", "hard"])
def test_slopes_of_budgets_are_derivatives(kind):
    values = torch.linspace(-2, 2, 9, dtype=torch.float64)
    kinds = {"bernoulli": lambda a: Bernoulli(a, 2.0), "concrete": Concrete, "hard": HardConcrete}
    gate = Clipped64(values) if kind == "clipped" else kinds[kind](values)
    slope = gate.slope()
    with torch.no_grad():
        gate.learnt.add_(1e-6)
        above = gate.expected()
        gate.learnt.sub_(2e-6)
    torch.testing.assert_close(slope, (above - gate.expected()) / 2e-6, rtol=1e-6, atol=1e-9)


def Clipped64(values):
    return Clipped(values, 0.5, 0.5)


def test_the_multiplier_ascends_by_what_is_over_budget():
    gate = Concrete(torch.zeros(10, dtype=torch.float64))  # the expected number of open gates is 5, the budget 1.1 * 2
    search = Lagrange([gate], 2, 1.1, 1e-3)
    weight = 0.0
    for _ in range(3):
        gate.logit.grad = torch.full((10,), 0.25, dtype=torch.float64)
        search.after_backward(0.0)
        assert gate.logit.grad.tolist() == pytest.approx([0.25 + weight * 100 * 0.25 / 2.2] * 10)
        weight += 1e-3 * 100 * (5 / 2.2 - 1)
        assert search.weight == pytest.approx(weight)
