"""The other strong-ticket methods: each gate against a plain loop, its gradient, its budget, and the defects of public versions."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from crbg import methods
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, folder
from crbg.gates import attach
from crbg.gates.concrete import Bernoulli, Clipped, Concrete, HardConcrete
from crbg.gates.gaussian import Gaussian
from crbg.gates.scores import Sampled, Scored, TopK
from crbg.masks.mask import Mask
from crbg.measure.accuracy import accuracy
from crbg.models.initial_weights import initialise
from crbg.models.registry import build
from crbg.runs.artifacts import reopen
from crbg.runs.evaluate import evaluate
from crbg.runs.setup import fresh
from crbg.runs.verify import PASS
from crbg.search import density_controller
from crbg.search.gradbalance import GiveUp, GradBalance, Lagrange, OneThreshold, Redraw
from crbg.training.clock import Clock, OutOfTime

BASE = Spec("digits", "lenet-32-16", "concrete", 0.2, scale=0.5, epochs=4, batch=64)
SIGNED = {"init": "signed_constant", "scale": 2.0}
SPECS = {
    "edge_popup": dataclasses.replace(BASE, method="edge_popup", options={"scope": "global", "reach": 0.5}),
    "biprop": dataclasses.replace(BASE, method="biprop", **SIGNED),
    "gem_miner": dataclasses.replace(BASE, method="gem_miner", options={"periods": 3, "lr": 5.0}),
    "supermask": dataclasses.replace(BASE, method="supermask", options={"rescale": True, "lr": 10.0}),
    "concrete": BASE,
    "hard_concrete": dataclasses.replace(BASE, method="hard_concrete", epochs=12),
}
REDRAWN = dataclasses.replace(BASE, method="iterand", options={"period": 10})
STG = dataclasses.replace(BASE, method="stg", density=None, batch=100)
EVERY = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def search(digits, spec, checkpoint=None, clock=None):
    model = build(spec.model, digits.in_shape, digits.classes)
    initialise(model, spec.init, spec.scale, 0)
    feed = BatchLoader(digits.train, spec.batch, 0)
    task = methods.SearchTask(feed, spec.density, spec.epochs, 0, nn.functional.cross_entropy, checkpoint, clock)
    return model, methods.get(spec.method).find(model, task, spec.resolved())


# --- every method ---


@EVERY
def test_exactly_the_asked_share_is_kept_and_no_weight_moves(digits, spec):
    model, found = search(digits, spec)
    before = build(spec.model, digits.in_shape, digits.classes)
    initialise(before, spec.init, spec.scale, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))
    assert found.mask.kept == round(0.2 * found.mask.total)
    assert not found.changed
    chance = accuracy(model, digits.validation.batches(), {n: torch.rand(t.shape) < 0.2 for n, t in found.mask.items()})
    assert accuracy(model, digits.validation.batches(), found.mask) > chance + 15


@pytest.mark.parametrize("spec", [*SPECS.values(), REDRAWN, STG], ids=[*SPECS, "iterand", "stg"])
def test_a_resumed_search_is_the_search_that_never_stopped(digits, spec, tmp_path):
    first, whole = search(digits, spec)
    for steps in (7, 30):
        with pytest.raises(OutOfTime):
            search(digits, spec, tmp_path / "checkpoint.pt", Clock(stop_after=steps))
    second, again = search(digits, spec, tmp_path / "checkpoint.pt")
    assert again.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(again.scores[n], whole.scores[n]) for n in whole.scores)


@EVERY
def test_a_density_is_needed(digits, spec):
    with pytest.raises(CrbgError, match="needs a density above 0"):
        search(digits, dataclasses.replace(spec, density=None))


@pytest.mark.parametrize("spec", [*SPECS.values(), STG], ids=[*SPECS, "stg"])
def test_a_run_is_recorded_and_verified(spec, one_run):
    row = one_run(spec).row
    assert (row.verdict, row.remarks) == (PASS, ())


# (method, VERSION) -> the loss of the first and the last epoch.
NUMBERS = {
    ("edge_popup", 1): [50.34885, 2.64719],
    ("biprop", 1): [10.63043, 0.30023],
    ("gem_miner", 1): [6.71162, 1.05999],
    ("supermask", 1): [132.75866, 4.23263],
    ("concrete", 1): [2.33036, 1.43550],
    ("hard_concrete", 1): [2.30475, 0.61018],
    ("iterand", 1): [44.63513, 1.85522],
    ("stg", 1): [3.26835, 3.38658],
}


@pytest.mark.parametrize("spec", [*SPECS.values(), REDRAWN, STG], ids=[*SPECS, "iterand", "stg"])
def test_numerics_of_a_version_are_pinned(digits, spec):
    key = (spec.method, methods.get(spec.method).VERSION)
    history = search(digits, spec)[1].history
    first, last = NUMBERS[key]
    assert history[0]["loss"] == pytest.approx(first, rel=2e-3)
    assert history[-1]["loss"] == pytest.approx(last, rel=5e-2)  # it feels the rounding of other machines


# --- gates against plain loops ---


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def gradient(gate, w, parameter, back):
    """Effective weight, and the gradient of the parameter under a given gradient of the effective weight."""
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
    assert gate.gain == pytest.approx(4 / sum(p) if rescale else 1.0)  # on average
    assert out.tolist() == pytest.approx([gain * float(w) * m for w, m in zip(W, mask, strict=True)])
    # Dropped weights hear the task too.
    assert slope.tolist() == pytest.approx([gain * float(b * w) * q * (1 - q) for b, w, q in zip(BACK, W, p, strict=True)])


def test_gem_miner_rounds_and_hears_dropped_weights_but_not_those_given_up():
    gate = Scored(tensor(0.2, 0.6, 0.9, 0.4))
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
    wanted = [float(b * w) * (z(float(x) + h, n) - z(float(x) - h, n)) / (2 * h) for b, w, x, n in zip(BACK, W, a, noise, strict=True)]
    assert slope.tolist() == pytest.approx(wanted, abs=1e-6)
    # Without noise: CTS's gate at L = 0; L0's estimate at test time.
    gate.sampling = False
    plain = [1 / (1 + math.exp(-float(x))) for x in a]
    wanted = plain if kind == "concrete" else [min(1.0, max(0.0, p * 1.2 - 0.1)) for p in plain]
    assert gate.soft().tolist() == pytest.approx(wanted)
    assert gate(W).tolist() == pytest.approx([float(w) * p for w, p in zip(W, wanted, strict=True)])


@pytest.mark.parametrize(("kind", "threshold"), [(Concrete, 0.5), (HardConcrete, 0.0)])
def test_open_probabilities_are_those_of_the_draws(kind, threshold):
    """The Concrete budget counts the gate without noise, which is not P(m > 1/2); the hard-concrete budget is P(z > 0)."""
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
    step(over=False)  # under the budget lambda* is 0, and lambda falls by a hundredth
    assert hook.weight == pytest.approx(0.99 * star)
    other = GradBalance(gates, keep=1)
    other.load_state_dict(hook.state_dict())
    assert other.weight == hook.weight


def test_one_threshold_falls_to_the_density_of_all_layers_together():
    torch.manual_seed(0)
    gates = [TopK(torch.randn(30), 3), TopK(0.1 * torch.randn(70), 7)]
    hook = OneThreshold(gates, density=0.1, reach=0.5)
    every = torch.cat([g.scores() for g in gates]).sort(descending=True).values
    for progress, kept in ((0.0, 100), (0.25, 55), (0.5, 10), (0.9, 10)):
        hook.before_forward(progress)
        masks = [g(torch.ones_like(g.score)) != 0 for g in gates]
        assert sum(int(m.sum()) for m in masks) == kept
        assert all(torch.equal(m, g.scores() >= every[kept - 1]) for m, g in zip(masks, gates, strict=True))
    assert int(masks[0].sum()) > 3 * int(masks[1].sum())  # the layer of small scores pays


def test_gem_miner_gives_up_the_lowest_of_what_is_left_and_ends_at_the_asked_number():
    torch.manual_seed(0)
    gates = [Scored(torch.rand(60)), Scored(torch.rand(40))]
    hook = GiveUp(gates, keep=10, periods=3, decay=0.0)
    left = []
    for progress in (0.0, 0.2, 0.25, 0.5, 0.74, 0.75, 0.99):
        hook.before_forward(progress)
        left.append(sum(int(g.alive.sum()) for g in gates))
    assert left == [100, 100, 46, 22, 22, 10, 10]  # 100 * 0.1 ** (i / 3)
    every = torch.cat([g.p.detach() for g in gates])
    alive = torch.cat([g.alive for g in gates])
    assert every[alive].min() > every[~alive].max()
    for g in gates:
        g.p.data += 5.0
    hook.after_step(0.99)
    assert max(float(g.p.detach().max()) for g in gates) == 1.0


def test_gem_miner_pulls_scores_towards_zero():
    gate = Scored(tensor(0.4, 0.8))
    gate.p.grad = tensor(1.0, 1.0)
    GiveUp([gate], keep=1, periods=1, decay=0.5).after_backward(0.0)
    assert gate.p.grad.tolist() == pytest.approx([1.2, 1.4])


# --- what only one method says ---


def test_biprop_on_signed_constants_is_edge_popup_unscaled(digits):
    one = dataclasses.replace(SPECS["biprop"], options={"scope": "layer"})
    other = dataclasses.replace(one, method="edge_popup", options={"scaled": False})
    assert search(digits, one)[1].mask == search(digits, other)[1].mask
    with pytest.raises(CrbgError, match=r"'fc1\.weight' has weights of different size: use `init: signed_constant`"):
        search(digits, dataclasses.replace(SPECS["biprop"], init="uniform"))


def test_scaled_edge_popup_is_the_unscaled_one_on_a_wider_range(digits):
    """At k = 1/4 the factor is exactly 2; the gradient of a score grows with the effective weight in both."""
    one = dataclasses.replace(BASE, method="edge_popup", density=0.25, scale=0.25)
    other = dataclasses.replace(one, scale=0.5, options={"scaled": False})
    assert search(digits, one)[1].mask == search(digits, other)[1].mask


def test_scopes_have_names(digits):
    with pytest.raises(CrbgError, match="scope is layer or global, not 'all'"):
        search(digits, dataclasses.replace(SPECS["edge_popup"], options={"scope": "all"}))


def test_gates_are_off_after_every_search(digits):
    for spec in SPECS.values():
        model, _ = search(digits, dataclasses.replace(spec, epochs=1))
        assert not attach.gates(model)


# --- IteRand: not a ticket of one draw ---


def test_redrawn_weights_come_from_the_initial_ones_and_only_outside_the_mask(digits):
    torch.manual_seed(0)
    weights = {"a": torch.randn(40, 50), "b": torch.randn(10, 40)}
    before = {n: w.clone() for n, w in weights.items()}
    gates = [TopK(torch.randn(w.shape), w.numel() // 4) for w in weights.values()]
    hook = Redraw(weights, gates, seed=3, period=5, rate=0.2)
    for _ in range(4):
        hook.after_step(0.0)
        assert all(torch.equal(weights[n], before[n]) for n in weights)
    hook.after_step(0.0)
    for (n, w), g in zip(weights.items(), gates, strict=True):
        changed = w != before[n]
        assert not bool((changed & g.kept()).any())
        assert float(changed.sum()) / float((~g.kept()).sum()) == pytest.approx(0.2, abs=0.05)
        assert set(w[changed].tolist()) <= set(before[n].flatten().tolist())
    with pytest.raises(CrbgError, match="period 0 must be at least 1"):
        Redraw(weights, gates, seed=3, period=0, rate=0.2)


def test_a_redrawn_ticket_says_so_and_is_read_with_its_own_weights(digits, one_run):
    model, found = search(digits, REDRAWN)
    assert set(found.changed.values()) == {"redrawn"}
    done = one_run(REDRAWN)
    bench, record = done.bench, done.record
    assert done.row.verdict == "PASS without ticket"
    assert record["roles"]["redrawn"] == sorted(found.changed)
    assert record["validation"]["readings"]["binary"]["accuracy"] == pytest.approx(accuracy(model, digits.validation.batches(), found.mask))
    where = folder(bench.results, done.spec, 0)
    assert not (where / "ticket.safetensors").exists()  # a ticket is a seed and a mask, which is not enough here
    again, _ = fresh(done.spec, digits, 0)
    assert reopen(where, again).changed == found.changed
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    tested = evaluate(done.spec, 0, bench)["test"]["readings"]["binary"]["accuracy"]
    assert tested == pytest.approx(accuracy(model, digits.test.batches(), found.mask))


def test_without_redrawing_iterand_is_edge_popup(digits):
    still = dataclasses.replace(REDRAWN, options={"rate": 0.0})
    _, found = search(digits, still)
    assert found.mask == search(digits, dataclasses.replace(BASE, method="edge_popup"))[1].mask
    assert not found.changed


# --- STG as published ---


def test_stg_decays_towards_the_middle_and_keeps_what_is_above_it(digits):
    _, found = search(digits, STG)
    drawn = torch.cat([s.flatten() for s in found.scores.values()])
    assert float((drawn - 0.5).abs().max()) < 0.06  # its learning rate hardly moves a gate
    assert 0.3 < found.mask.density < 0.7
    assert found.mask == Mask({n: s > 0.5 for n, s in found.scores.items()})
    model, _ = search(digits, dataclasses.replace(STG, epochs=1))
    with attach.gated(model, lambda name, w: Gaussian(torch.full_like(w, 0.3), noise=0.5, penalty_sigma=0.5)):
        hook = density_controller.Centred(model, "induce_sparse", 0.1, 0.5)
        for g in hook.gates:
            g.mu.grad = torch.zeros_like(g.mu)
        hook.after_backward(0.0)
        slope = math.exp(-0.5 * 0.6**2) / math.sqrt(2 * math.pi) / 0.5
        assert hook.gates[0].mu.grad.flatten()[0] == pytest.approx(0.1 * slope / hook.total + 0.5 * (0.3 - 0.5), rel=1e-4)
    with pytest.raises(CrbgError, match="stg finds its own sparsity"):
        search(digits, dataclasses.replace(STG, density=0.5))


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
    assert float((gate(torch.ones(200_000)).detach() > 0.5).double().mean()) == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / 200_000))
    plain = Concrete(torch.full((200_000,), Concrete.start(0.1)))
    plain.sampling = True
    assert float((plain(torch.ones(200_000)).detach() > 0.5).double().mean()) > 0.15  # the authors' count says 0.1


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
    gate = Concrete(torch.zeros(10, dtype=torch.float64))  # openness 5 of 10, budget 1.1 x 2
    search = Lagrange([gate], 2, 1.1, 1e-3)
    weight = 0.0
    for _ in range(3):
        gate.logit.grad = torch.full((10,), 0.25, dtype=torch.float64)
        search.after_backward(0.0)
        assert gate.logit.grad.tolist() == pytest.approx([0.25 + weight * 100 * 0.25 / 2.2] * 10)
        weight += 1e-3 * 100 * (5 / 2.2 - 1)
        assert search.weight == pytest.approx(weight)
