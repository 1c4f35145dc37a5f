import copy
import itertools
import math

import pytest
import torch
from torch import nn

from crbg import find_ticket
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, weights
from crbg.gates.gaussian import Gaussian, Units
from crbg.gates.scores import TopK
from crbg.masks.select import erk_counts, layer_counts
from crbg.search.density_controller import Controlled, Penalised, Plan
from crbg.search.penalties import penalty
from crbg.search.shift_controller import Shifted
from crbg.training.clock import Collapse

F64 = torch.float64
MIXTURE = "1.5*induce_sparse + -0.25*induce_decision+decision_entropy"


# a fixed lambda -----------------------------------------------------------------------------------------------------


def gated(widths=(6, 5, 4), seed=0, **options):
    """Attach gates with mu spread around 1/2 to a small chain of linear layers in double precision."""
    g = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(a, b, bias=False, dtype=F64) for a, b in itertools.pairwise(widths)]
    for layer in layers:
        nn.init.normal_(layer.weight, generator=g)
    return attach(
        nn.Sequential(*layers), lambda n, w: Gaussian(0.5 + torch.randn(w.shape, generator=g, dtype=F64), **options)
    )


def task_gradients(model, seed=1):
    g = torch.Generator().manual_seed(seed)
    model.zero_grad()
    x = torch.randn(8, 6, generator=g, dtype=F64)
    (model(x).square().mean()).backward()
    return [gate.mu.grad.clone() for gate in attached_gates(model).values()]


@pytest.mark.parametrize("name", ["induce_sparse", MIXTURE])
def test_a_fixed_lambda_adds_the_gradient_of_the_mean_penalty(name):
    model = gated(penalty_sigma=0.3)
    search = Penalised(model, name, 0.7)
    task = task_gradients(model)
    search.after_backward(0.0)
    mus = [g.mu.detach().clone().requires_grad_() for g in attached_gates(model).values()]
    (0.7 * penalty(name).value(torch.cat([m.flatten() for m in mus]), 0.3).mean()).backward()
    assert search.total == 50
    for gate, t, m in zip(attached_gates(model).values(), task, mus, strict=True):
        torch.testing.assert_close(gate.mu.grad - t, m.grad, rtol=1e-9, atol=1e-12)


def test_a_shared_unit_gate_counts_once():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    unit, other = Units(torch.full((4,), 0.75)), Units(torch.full((3,), 0.25))
    model = attach(Two(), lambda n, w: other if n == "c.weight" else unit)
    search = Penalised(model, "induce_sparse", 1.4)
    assert search.total == 7
    assert search.gates == [unit, other]
    assert search.density() == pytest.approx(4 / 7)
    model(torch.ones(2, 4)).sum().backward()
    before = unit.mu.grad.clone()
    search.after_backward(0.0)
    slope = 1.4 / 7 * penalty("induce_sparse").slope(unit.mu.detach(), 0.5)
    torch.testing.assert_close(unit.mu.grad - before, slope, rtol=1e-4, atol=1e-6)


def test_what_is_logged_are_shares_of_all_gates():
    model = gated((2, 2, 1))
    first, second = attached_gates(model).values()
    with torch.no_grad():
        first.mu.copy_(torch.tensor([[0.5, 0.6], [1.0, -0.1]]))
        second.mu.copy_(torch.tensor([[0.0, 3.0]]))
    row = Penalised(model, "induce_sparse", 0.3).log()
    assert row == {
        "density": 3 / 6,
        "undecided": 2 / 6,
        "lambda": 0.3,
        "density 0.weight": 1 / 2,
        "density 1.weight": 1 / 2,
    }


@pytest.mark.parametrize("kind", [Penalised, Controlled])
def test_a_closed_network_is_a_collapse(kind):
    model = gated()
    search = kind(model, "induce_sparse", 0.5)
    assert search.log()["density"] > 0
    with torch.no_grad():
        for g in attached_gates(model).values():
            g.mu.clamp_(max=0.5)
    with pytest.raises(Collapse, match="closed the whole network"):
        search.log()


def test_penalties_need_gaussian_gates():
    model = attach(nn.Sequential(nn.Linear(3, 3)), lambda n, w: TopK(w, 2))
    with pytest.raises(CrbgError, match="no Gaussian gates"):
        Penalised(model, "induce_sparse", 1.0)


@pytest.mark.parametrize("kind", [Penalised, Controlled])
def test_a_gate_without_gradient_is_refused(kind):
    with pytest.raises(CrbgError, match="received no gradient"):
        kind(gated(), "induce_sparse", 0.5).after_backward(0.0)


@pytest.mark.parametrize("to", [0.1, 1.5])
def test_annealing_is_linear_and_over_at_four_fifths(to):
    model = gated(noise=0.9)
    search = Penalised(model, "induce_sparse", 1.0, anneal_to=to)
    for progress, share in [(0.0, 0.0), (0.2, 0.25), (0.4, 0.5), (0.8, 1.0), (0.95, 1.0)]:
        search.before_forward(progress)
        assert [g.noise for g in search.gates] == pytest.approx([0.9 + (to - 0.9) * share] * 2)


def test_without_annealing_the_noise_stays():
    search = Penalised(gated(noise=0.9), "induce_sparse", 1.0)
    search.before_forward(0.9)
    assert [g.noise for g in search.gates] == [0.9, 0.9]


# feedback on lambda -------------------------------------------------------------------------------------------------


def test_the_path_is_geometric_and_ends_at_the_target():
    search = Controlled(gated(), "induce_sparse", 0.05, Plan(reach=0.4))
    start = search.density()
    assert search.path(0.0) == pytest.approx(start)
    assert search.path(0.2) == pytest.approx(math.sqrt(start * 0.05))
    assert [search.path(p) for p in (0.4, 0.7, 1.0)] == pytest.approx([0.05] * 3)
    # A target above the initial density applies immediately.
    assert Controlled(gated(), "induce_sparse", 0.99).path(0.0) == 0.99


def pushed(model, density, progress, **plan):
    """Return the gradients that the controller adds in a step with a density measurement, and the controller."""
    search = Controlled(model, "induce_sparse", density, Plan(**plan))
    task = task_gradients(model)
    search.after_backward(progress)
    return [g.mu.grad - t for g, t in zip(attached_gates(model).values(), task, strict=True)], search


def test_too_dense_closes_gates_and_too_sparse_opens_them():
    model = gated()
    now = Penalised(model, "induce_sparse", 0.0).density()
    closing, high = pushed(model, now / 2, 0.45)
    opening, low = pushed(model, min(1.0, now * 1.5), 0.45)
    assert high.weight > 0
    assert low.weight < 0
    assert all(bool((g > 0).all()) for g in closing)
    assert all(bool((g < 0).all()) for g in opening)


def test_the_pull_has_the_norm_of_the_task_times_lambda():
    model = gated()
    added, search = pushed(model, 0.2, 0.45)
    error = min(1.0, math.log(search.density() / 0.2))
    assert search.weight == pytest.approx(error * 1.05)
    norm = torch.cat([t.flatten() for t in task_gradients(model)]).norm().item()
    flat = torch.cat([a.flatten() for a in added])
    assert flat.norm().item() == pytest.approx(abs(search.weight) * norm, rel=1e-6)
    slopes = torch.cat([penalty("induce_sparse").slope(g.mu.detach(), 0.5).flatten() for g in search.gates])
    torch.testing.assert_close(flat / flat.norm(), slopes / slopes.norm())


def test_lambda_is_bounded_when_the_density_is_far_off():
    for density in (1e-6, 1.0):
        model = gated()
        with torch.no_grad():
            for g in attached_gates(model).values():
                g.mu.fill_(0.9 if density < 0.5 else 0.1)
        search = Controlled(model, "induce_sparse", density)
        task_gradients(model)
        for _ in range(1000):
            search.after_backward(1.0)
            search.after_step(1.0)
        assert abs(search.weight) == pytest.approx(6.0)


def test_the_decision_comes_late_and_only_near_the_path():
    model = gated()
    now = Penalised(model, "induce_sparse", 0.0).density()
    decision = [penalty("induce_decision").slope(g.mu.detach(), 0.5) for g in attached_gates(model).values()]
    for progress, density, share in [(0.45, now, 0.0), (0.75, now, 0.5), (1.0, now, 1.0), (1.0, now / 1.5, 0.0)]:
        added, _ = pushed(model, density, progress, firmness=0.8)
        plain, _ = pushed(model, density, progress, firmness=0.0)
        for a, p, d, t in zip(added, plain, decision, task_gradients(model), strict=True):
            torch.testing.assert_close(a - p, d * (0.8 * share * t.norm() / d.norm()), rtol=1e-6, atol=1e-9)


def test_gates_are_kept_within_reach_of_the_penalty():
    model = gated(penalty_sigma=0.3)
    search = Controlled(model, "induce_sparse", 0.5)
    with torch.no_grad():
        for g in search.gates:
            g.mu[0] = torch.linspace(-9, 9, g.mu.shape[1])
    search.after_step(0.0)
    for g in search.gates:
        assert g.mu.min().item() == pytest.approx(-0.6)
        assert g.mu.max().item() == pytest.approx(1.6)


@pytest.mark.parametrize("steps", [1, 4, 5, 13])
def test_a_saved_controller_goes_on_as_if_nothing_had_happened(steps, tmp_path):
    model = gated()
    search = Controlled(model, "induce_sparse", 0.3)

    def go(model, search, first, last):
        for i in range(first, last):
            task_gradients(model, seed=i)
            search.after_backward(i / 40)
            with torch.no_grad():
                for g in attached_gates(model).values():
                    g.mu.sub_(g.mu.grad, alpha=0.05)
            search.after_step(i / 40)

    go(model, search, 0, steps)
    other = copy.deepcopy(model)
    torch.save(search.state_dict(), tmp_path / "state.pt")
    go(model, search, steps, 40)
    again = Controlled(other, "induce_sparse", 0.3)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    go(other, again, steps, 40)
    # The meta device represents a GPU. Checkpoints are loaded to the CPU.
    again.gates = [Gaussian(torch.empty(2, device="meta"))]
    again.load_state_dict({"push": [torch.ones(2)]})
    assert again.push[0].device.type == "meta"
    assert again.weight == search.weight
    for a, b in zip(attached_gates(model).values(), attached_gates(other).values(), strict=True):
        assert torch.equal(a.mu, b.mu)


@pytest.mark.parametrize("polish", [0.0, 0.5])
def test_the_shift_keeps_the_density_on_its_path(polish):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 4))
    attach(model, lambda name, w: Gaussian(0.5 + 0.1 * torch.randn_like(w), noise=0.0))
    hook = Shifted(model, 0.1, Plan(reach=0.4, polish=polish))
    adam = torch.optim.Adam([g.mu for g in hook.gates], lr=0.03)
    x = torch.randn(32, 40)
    for step in range(20):
        progress = step / 20
        hook.before_forward(progress)
        adam.zero_grad()
        model(x).square().mean().backward()
        hook.after_backward(progress)
        adam.step()
        hook.after_step(progress)
        assert hook.density() == pytest.approx(hook.path(progress), abs=2 / hook.total)
    assert hook.gates[0].hard == (polish > 0)
    assert hook.density() == pytest.approx(0.1, abs=2 / hook.total)


@pytest.mark.parametrize("by_layer", [None, layer_counts, erk_counts])
def test_the_shift_holds_the_density_of_each_layer_if_asked(by_layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 4))
    attach(model, lambda name, w: Gaussian(0.5 + 0.1 * torch.randn_like(w), noise=0.0))
    hook = Shifted(model, 0.25, Plan(reach=0.4), by_layer=by_layer)
    hook.gates[0].mu.data += 0.3  # all gates of the first layer are larger than those of the second
    for step in range(20):
        hook.before_forward(step / 20)
        hook.after_step(step / 20)
    open_gates = [float((g.mu > 0.5).float().mean()) for g in hook.gates]
    all_open = {None: [0.25 * 2200 / 2000, 0.0], layer_counts: [0.25, 0.25], erk_counts: [350 / 2000, 1.0]}
    expected = all_open[by_layer]  # of 550 open gates, the small second layer has all 200 with the Erdős-Rényi kernel
    assert open_gates == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("density", [None, 0.3])
def test_the_penalty_of_small_weights_can_be_larger(density):
    """The gradient that a penalty adds is multiplied by |w|^-1 over its mean, for each weight."""
    added = {}
    for adapt in (0.0, -1.0):
        torch.manual_seed(0)
        model = attach(nn.Sequential(nn.Linear(6, 5, bias=False)), lambda n, w: Gaussian(torch.full_like(w, 0.6)))
        (gate,) = attached_gates(model).values()
        hook = Penalised(model, "induce_sparse", 1.0) if density is None else Controlled(model, "induce_sparse", 0.01)
        w = weights(model)["0.weight"].detach().abs()
        if adapt:
            hook.factors = [w**-1 / (w**-1).mean()]
        gate.mu.grad = torch.full_like(gate.mu, 1e-3)
        hook.before_forward(0.9)
        hook.after_backward(0.9)
        added[adapt] = gate.mu.grad - 1e-3
    ratio = added[-1.0] / added[0.0] * w
    torch.testing.assert_close(ratio / ratio.mean(), torch.ones_like(w))
    assert float(added[-1.0].min()) > 0


def test_an_adapted_search_divides_the_factors_by_their_mean(monkeypatch):
    hooks = []
    monkeypatch.setattr(Controlled, "log", lambda self: hooks.append(self) or {})
    torch.manual_seed(0)
    model = nn.Linear(20, 4)
    with torch.no_grad():
        model.weight[0, 0] = 0.0  # no candidate
    find_ticket(
        model, (torch.randn(40, 20), torch.arange(40) % 4), 0.3, adapt=-0.5, steer="penalty", epochs=2, batch=20
    )
    (factor,) = hooks[0].factors
    size = model.weight.detach().abs().flatten()[1:]
    torch.testing.assert_close(factor, size**-0.5 / (size**-0.5).mean())
