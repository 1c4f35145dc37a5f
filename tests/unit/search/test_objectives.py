"""Objectives of a ticket search: values computed by hand, gate gradients by finite differences, and side effects."""

import pytest
import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.gates import attach
from crbg.gates.concrete import Concrete
from crbg.search import objectives

LOSS = nn.functional.cross_entropy


@pytest.fixture
def gated():
    """Return a small network in float64 with noise-free Concrete gates, and a batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3, bias=False)).double()
    with attach.frozen(net):
        attach.attach(net, lambda name, w: Concrete(torch.randn_like(w)))
        yield net, torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 3


@pytest.mark.parametrize("name", objectives.NAMES)
def test_gradients_reach_every_gate_and_are_right(gated, name):
    net, x, y = gated
    of = objectives.objective(name, LOSS)
    of(net, x, y).backward()
    for gate in attach.attached_gates(net).values():
        slope = gate.logit.grad.clone()
        assert float(slope.abs().max()) > 0
        for i in (0, gate.logit.numel() // 2, gate.logit.numel() - 1):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    gate.logit.view(-1)[i] += step
                ends.append(float(of(net, x, y)))
                with torch.no_grad():
                    gate.logit.view(-1)[i] -= step
            assert float(slope.view(-1)[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", objectives.NAMES)
def test_weights_keep_no_gradient_and_no_hook_stays(gated, name):
    net, x, y = gated
    # With the other objectives, weights that are not frozen receive a gradient, as with any loss.
    if name in objectives.SECOND_ORDER:
        for w in attach.weights(net).values():
            w.requires_grad_(True)
    hooks = [len(m._forward_hooks) for m in net.modules()]
    objectives.objective(name, LOSS)(net, x, y).backward()
    assert all(w.grad is None for w in attach.weights(net).values())
    assert [len(m._forward_hooks) for m in net.modules()] == hooks


@pytest.mark.parametrize("name", objectives.NAMES)
def test_measuring_keeps_no_graph_and_gives_the_same_number(gated, name):
    net, x, y = gated
    of = objectives.objective(name, LOSS)
    searched = of(net, x, y)
    with torch.no_grad():
        measured = of(net, x, y)
        assert not any(g.requires_grad for g in objectives._gradients(net, x, y, LOSS))
    assert searched.requires_grad
    assert not measured.requires_grad
    assert float(measured) == pytest.approx(float(searched.detach()), rel=1e-12)


def test_divergences_by_hand():
    p, q = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    wanted = float((p * (p / q).log()).sum() / 2)
    assert float(objectives.divergence(p.log() + 3.0, q.log() - 1.0)) == pytest.approx(wanted, rel=1e-6)
    backwards = float((q * (q / p).log()).sum() / 2)
    assert backwards != pytest.approx(wanted, rel=1e-2)


def test_reverse_kl_puts_the_sparse_network_first(gated):
    net, x, y = gated
    sparse, dense = net(x).softmax(1), objectives.dense(net, x, None)[0].softmax(1)
    for name, (p, q) in {"kl": (sparse, dense), "forward_kl": (dense, sparse)}.items():
        wanted = float((p * (p / q).log()).sum(1).mean())
        assert float(objectives.objective(name, LOSS)(net, x, y).detach()) == pytest.approx(wanted)


def test_the_other_objectives_by_hand(gated):
    net, x, y = gated
    ours = {n: float(objectives.objective(n, LOSS)(net, x, y).detach()) for n in objectives.NAMES}
    masked = {
        n: g(w).detach()
        for (n, w), g in zip(attach.weights(net).items(), attach.attached_gates(net).values(), strict=True)
    }
    plain = {n: w.detach() for n, w in attach.weights(net).items()}
    gates = {n: g.logit.detach().sigmoid() for n, g in attach.attached_gates(net).items()}

    def run(ws):
        ws = {n: w.clone().requires_grad_() for n, w in ws.items()}
        hidden = (x @ ws["0.weight"].T).relu()
        normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        out = normed @ ws["3.weight"].T
        loss = LOSS(out, y)
        return (
            hidden.detach(),
            out.detach(),
            float(loss),
            dict(zip(ws, torch.autograd.grad(loss, list(ws.values())), strict=True)),
        )

    (h, out, loss, slopes), (h0, out0, loss0, slopes0) = run(masked), run(plain)
    slopes = {n: g * gates[n] for n, g in slopes.items()}  # gradient with respect to theta, not to the gated weight
    assert ours["loss"] == pytest.approx(loss)
    assert ours["deltaloss"] == pytest.approx(abs(loss / loss0 - 1))
    assert ours["gradnorm"] == pytest.approx(-(sum(float(g.square().sum()) for g in slopes.values()) ** 0.5))

    def standard(t):
        # Rows without an active unit would give 0 / 0, which is NaN.
        return ((t - t.mean(-1, keepdim=True)) / t.std(-1, keepdim=True)).nan_to_num()

    gaps = [(standard(slopes[n].flatten()) - standard(slopes0[n].flatten())).square().mean() for n in slopes]
    assert ours["grad"] == pytest.approx(float(sum(gaps) / 2), rel=1e-6)
    pairs = ((h, h0), (out.softmax(1), out0.softmax(1)))
    assert ours["feature"] == pytest.approx(
        float(sum((standard(a) - standard(b)).square().mean() for a, b in pairs) / 2), rel=1e-3
    )


def test_a_layer_that_is_dead_gives_a_finite_gradient(gated):
    net, x, y = gated
    with torch.no_grad():
        attach.attached_gates(net)["0.weight"].logit.fill_(-60.0)
    objectives.objective("feature", LOSS)(net, x, y).backward()
    assert all(bool(g.logit.grad.isfinite().all()) for g in attach.attached_gates(net).values())


def test_a_full_mask_is_the_dense_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    full = {n: torch.ones_like(w, dtype=torch.bool) for n, w in attach.weights(net).items()}
    found = objectives.measure(net, full, [(x[:6], y[:6]), (x[6:], y[6:])], LOSS)
    assert {n for n, v in found.items() if v == 0.0} == {"deltaloss", "kl", "forward_kl", "feature", "grad"}
    assert found["loss"] == pytest.approx(float(LOSS(net(x), y).detach()))
    assert not attach.attached_gates(net)


def test_an_unknown_objective_is_refused():
    with pytest.raises(CrbgError, match=r"unknown objective 'klx'.*'kl'"):
        objectives.objective("klx", LOSS)


def test_features_are_compared_in_full_precision():
    a = torch.randn(4, 50).to(torch.bfloat16)
    assert objectives.standardised(a).dtype == torch.float32
