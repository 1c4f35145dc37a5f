"""Variants of the CRBG search, for example on trained weights or with gates on units, and their records."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from crbg import find_ticket, measure, methods
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, folder
from crbg.gates import attach
from crbg.gates.gaussian import Gaussian, Units
from crbg.measure.accuracy import accuracy
from crbg.models.initial_weights import initialise
from crbg.models.registry import build
from crbg.runs.artifacts import reopen
from crbg.runs.execute import execute
from crbg.runs.setup import Workspace, initial_model
from crbg.search.density_controller import Controlled, Plan
from crbg.ticket import Ticket
from crbg.training.clock import Clock, OutOfTime

BASE = Spec("digits", "lenet-32-16", "crbg", 0.5, scale=0.3, epochs=3, batch=64)


def variant(**options):
    return dataclasses.replace(BASE, options=options)


@pytest.fixture
def bench(tmp_path, digits):
    return Workspace(tmp_path / "results", loaded={"digits": digits})


def search(digits, spec=BASE, activation="leaky", seed=0):
    model = build(spec.model, digits.in_shape, digits.classes, activation=activation)
    initialise(model, spec.init, spec.scale, seed)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    task = methods.SearchTask(
        BatchLoader(digits.train, spec.batch, seed), spec.density, spec.epochs, seed, nn.functional.cross_entropy
    )
    found = methods.get(spec.method).find(model, task, spec.resolved())
    same = {n for n, t in model.state_dict().items() if torch.equal(t, before[n])}
    return model, found, same


# --- trained weights and their records ---

FC = {"fc1.weight", "fc2.weight", "fc3.weight"}


@pytest.mark.parametrize(
    "options", [{"pretrain": 1}, {"joint_lr": 0.001}, {"finetune": 1}], ids=lambda o: next(iter(o))
)
def test_regimes_that_train_weights_say_so(digits, options):
    _, found, same = search(digits, variant(**options))
    assert not same & FC
    assert found.changed == dict.fromkeys(FC, "trained")


def test_training_before_and_after_a_search_counts_as_epochs(digits):
    spec = variant(pretrain=2, finetune=3)
    assert methods.work("crbg", spec.resolved(), spec.density, spec.epochs) == spec.epochs + 5
    assert methods.work("crbg", BASE.resolved(), BASE.density, BASE.epochs) == BASE.epochs


def test_pretrained_weights_are_frozen_during_the_search(digits):
    spec = variant(pretrain=2, lr=0.0)  # with fixed gates, the result must equal two epochs of dense training
    model, _, _ = search(digits, spec)
    dense, _, _ = search(digits, dataclasses.replace(BASE, method="dense", density=None, epochs=2))
    assert all(torch.equal(model.state_dict()[n], dense.state_dict()[n]) for n in FC)


def test_joint_training_moves_weights_and_gates(digits):
    _, found, _ = search(digits, variant(joint_lr=0.003, noise=0.1))
    alone = search(digits, variant(noise=0.1))[1]
    assert found.mask != alone.mask


def test_finetuning_trains_kept_weights_alone_and_helps(digits):
    model, found, _ = search(digits, variant(finetune=3))
    other, plain, same = search(digits, BASE)
    assert found.mask == plain.mask
    assert same >= FC
    for name, w in attach.weights(model).items():
        # Dropped weights receive no gradient and stay bit-identical, while most of the kept weights change.
        moved = w != attach.weights(other)[name]
        assert not bool((moved & ~found.mask[name]).any())
        assert moved[found.mask[name]].float().mean() > 0.5
    parts = digits.validation
    assert accuracy(model, parts.batches(), found.mask) > accuracy(other, parts.batches(), plain.mask)


def test_finetuning_a_shuffled_mask_keeps_layer_densities_only(digits):
    model, found, _ = search(digits, variant(finetune=1, finetune_mask="shuffled"))
    other, plain, _ = search(digits, BASE)
    assert found.mask != plain.mask
    assert {n: int(m.sum()) for n, m in found.mask.items()} == {n: int(m.sum()) for n, m in plain.mask.items()}
    for name, w in attach.weights(model).items():
        moved = w != attach.weights(other)[name]
        assert bool(moved.any())
        assert not bool((moved & ~found.mask[name]).any())
    with pytest.raises(CrbgError, match=r"finetune_mask needs training after the search: set `options\.finetune`"):
        variant(finetune_mask="shuffled")


def test_slopes_train_and_weights_do_not(digits):
    model, found, same = search(digits, variant(train_slopes=True), "prelu_per_unit")
    assert found.changed == {"act1.weight": "trained", "act2.weight": "trained"}
    assert same >= FC
    assert not same & set(found.changed)
    assert [tuple(model.state_dict()[n].shape) for n in found.changed] == [(32,), (16,)]


def test_a_probe_trains_the_last_weight_alone(digits):
    _, found, same = search(digits, dataclasses.replace(BASE, method="probe", density=None))
    assert found.changed == {"fc3.weight": "trained"}
    assert same == FC - {"fc3.weight"}
    assert found.mask.density == 1


@pytest.mark.parametrize(
    "options", [{"pretrain": 1}, {"joint_lr": 0.001}, {"finetune": 1}, {"polish": 0.5, "noise": 0.0, "firmness": 0.0}]
)
def test_an_interrupted_variant_ends_in_the_same_bytes(bench, options):
    spec = variant(**options)
    whole = execute(spec, 1, bench)
    cut = dataclasses.replace(bench, results=bench.results.parent / "cut")
    for steps in (10, 30):
        with pytest.raises(OutOfTime):
            execute(spec, 1, cut, Clock(stop_after=steps))
    again = execute(spec, 1, cut)
    assert again == whole
    assert not list(folder(cut.results, spec, 1).glob("checkpoint*"))


def test_trained_tensors_are_read_back_for_the_evaluation(bench, digits):
    spec = dataclasses.replace(variant(train_slopes=True), model_args={"activation": "prelu"})
    record = execute(spec, 0, bench)
    model, _ = initial_model(spec, digits, 0)
    found = reopen(folder(bench.results, spec, 0), model, record.digests.gates)
    assert record.roles["trained"] == ["act1.weight", "act2.weight"]
    seen = record.value()
    assert accuracy(model, digits.validation.batches(), found.mask) == pytest.approx(seen)
    initial, _ = initial_model(spec, digits, 0)
    assert accuracy(initial, digits.validation.batches(), found.mask) != pytest.approx(seen)
    assert not (folder(bench.results, spec, 0) / "ticket.safetensors").exists()


# --- hard gates and leaks ---


def test_a_hard_gate_is_binary_and_passes_the_gradient_straight_through():
    mu, w = torch.tensor([-0.4, 0.3, 0.6, 1.7]), torch.tensor([1.0, -2.0, 3.0, -4.0])
    g = Gaussian(mu, noise=0.5)
    g.hard = g.sampling = True
    out = g(w)
    assert out.tolist() == [0.0, 0.0, 3.0, -4.0]
    (out * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    # The gradient is upstream * w for closed and open gates, without the sign of mu.
    assert g.mu.grad.tolist() == [1.0, -20.0, 300.0, -4000.0]


@pytest.mark.parametrize("leak", [0.0, 0.25, 1.0])
def test_a_leak_replaces_the_slope_of_clip_outside_its_range(leak):
    mu, w = torch.tensor([-0.4, 0.3, 1.7]), torch.tensor([1.0, -2.0, -4.0])
    g = Gaussian(mu, noise=0.0, leak=leak)
    out = g(w)
    assert out.tolist() == [0.0, pytest.approx(-0.6), -4.0]
    out.sum().backward()
    assert g.mu.grad.tolist() == pytest.approx([leak * 1.0, -2.0, leak * -4.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gaussian(torch.zeros(2), leak=1.5), "leak 1.5 must be in"),
        (lambda: Gaussian(torch.zeros(2), leak=0.5, learn_sigma=True), "leak 0.5"),
        (lambda: Units(torch.zeros(2), leak=0.5), "not on units"),
    ],
)
def test_leaks_that_mean_nothing_are_refused(make, words):
    with pytest.raises(CrbgError, match=words):
        make()


def test_polishing_makes_gates_hard_at_the_end_and_steers_the_density_alone():
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    attach.attach(model, lambda name, w: Gaussian(torch.linspace(0.1, 0.9, 32).reshape(4, 8), noise=0.0))
    search = Controlled(model, "induce_sparse", 0.5, Plan(polish=0.25, every=1, decide=0.0, tolerance=10))
    pushes = []
    for progress in (0.0, 0.74, 0.76):
        search.before_forward(progress)
        assert search.gates[0].hard == (progress > 0.75)
        search.gates[0].mu.grad = torch.ones(4, 8)
        search.after_backward(progress)
        pushes.append(
            search.push[0]
            - search.weight * search.task[0] * unit(search.penalty.slope(search.gates[0].mu.detach(), 0.5))
        )
    assert pushes[1].norm() > 0.5  # the push that decides between open and closed
    assert pushes[2].norm() < 1e-4


def unit(t):
    return t / t.norm()


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_polishing_gives_a_better_binary_mask_than_stopping_undecided(granularity, digits):
    spec = variant(noise=0.0, firmness=0.0, lr=0.01, granularity=granularity)
    spec = dataclasses.replace(spec, density=0.2, epochs=20)
    polished = dataclasses.replace(spec, options=dict(spec.options) | {"polish": 0.5})
    results = []
    for s in (spec, polished):
        model, found, same = search(digits, s)
        assert same >= FC
        results.append(accuracy(model, digits.validation.batches(), found.mask))
    assert results[1] > results[0] + 1


def test_rows_and_columns_can_share_steps(digits):
    plain, shared = (search(digits, variant(shared_lr=rate))[1] for rate in (0.0, 0.05))
    assert abs(shared.mask.density / 0.5 - 1) <= 0.02, "the controller acts as without shared steps"
    spread = [found.scores["fc1.weight"].mean(0).std() for found in (plain, shared)]
    assert spread[1] > 1.2 * spread[0], "whole columns move"


def test_options_that_would_do_nothing_are_refused(digits):
    with pytest.raises(CrbgError, match="the network has no PReLU"):
        search(digits, variant(train_slopes=True))
    with pytest.raises(CrbgError, match="set `density`"):
        search(digits, dataclasses.replace(variant(polish=0.5), density=None))


# --- contents of a record ---


def test_a_record_shows_the_course_of_the_search(bench):
    record = execute(dataclasses.replace(BASE, epochs=15), 0, bench)
    total = record.gated
    mu = record.anatomy["mu"]
    assert {k: sum(v) for k, v in mu.items()} == dict.fromkeys(("start", "middle", "end"), total)
    low, high, count = record.anatomy["bins"]
    width = (high - low) / count
    near = round((0.5 - low) / width)
    assert sum(mu["start"][near - 2 : near + 2]) > 0.99 * total  # mu is initialised from N(1/2, 0.01^2)
    assert mu["middle"] != mu["start"]
    assert mu["end"] != mu["middle"]
    rows = record.anatomy["epochs"]
    assert len(rows) == 12
    assert (rows[-1]["epoch"], rows[-1]["density"]) == (15, pytest.approx(record.density, rel=1e-3))
    kept = record.layers["fc2.weight"]
    assert rows[-1]["density fc2.weight"] == pytest.approx(kept.density, abs=1e-3)
    history = (
        (folder(bench.results, dataclasses.replace(BASE, epochs=15), 0) / "history.jsonl").read_text().splitlines()
    )
    assert len(history) == 15
    assert json.loads(history[-1])["density"] == pytest.approx(rows[-1]["density"], rel=1e-3)


def test_a_record_of_unit_gates_counts_units(bench):
    record = execute(variant(granularity="unit"), 0, bench)
    units = record.anatomy["units"]
    assert {n: u["total"] for n, u in units.items()} == {"fc2.weight": 32, "fc3.weight": 16}
    assert sum(u["kept"] for u in units.values()) == 24
    ticket = Ticket.load(folder(bench.results, variant(granularity="unit"), 0) / "ticket.safetensors")
    assert set(ticket.mask) == {"fc2.weight", "fc3.weight"}  # the first layer has no gate and stays dense
    assert bool((ticket.model().state_dict()["fc1.weight"] != 0).all())
    # The mask covers only the outgoing weights of a unit, but a closed unit makes its incoming weights useless too.
    assert record.effective_density < record.density


def test_layers_on_a_residual_stream_share_gates(digits):
    model = build("resnet20", digits.in_shape, digits.classes, width=0.25)
    initialise(model, "kaiming_normal", 1.0, 0)
    task = methods.SearchTask(BatchLoader(digits.train, 512, 0), 0.5, 1, 0, nn.functional.cross_entropy)
    found = methods.get("crbg").find(model, task, variant(granularity="stream").resolved())
    assert "conv.weight" not in found.mask  # it reads the input of the network
    readers = ["stage2.1.conv1.weight", "stage2.2.conv1.weight", "stage3.0.conv1.weight", "stage3.0.shortcut.0.weight"]
    for columns in (found.mask, found.scores, found.soft):
        first, *others = (columns[name][0, :, 0, 0] for name in readers)
        assert all(torch.equal(first, other) for other in others)
    units = found.anatomy["units"]
    assert [name for name in readers if name in units] == readers[:1], "a shared unit counts once"
    assert sum(u["total"] for u in units.values()) == 112
    assert sum(u["kept"] for u in units.values()) == pytest.approx(56, rel=0.02)
    assert not attach.attached_gates(model)


def test_each_stream_keeps_the_same_share_of_units_if_asked(digits):
    model = build("resnet20", digits.in_shape, digits.classes, width=0.5)
    initialise(model, "kaiming_normal", 1.0, 0)
    task = methods.SearchTask(BatchLoader(digits.train, 512, 0), 0.5, 1, 0, nn.functional.cross_entropy)
    options = variant(granularity="stream", steer="shift_layers").resolved()
    units = methods.get("crbg").find(model, task, options).anatomy["units"]
    assert {(u["kept"], u["total"]) for u in units.values()} == {(4, 8), (8, 16), (16, 32)}


@pytest.mark.parametrize("mask", ["found", "shuffled"])
def test_weights_under_unit_gates_can_be_trained_after_the_search(digits, mask):
    spec = dataclasses.replace(variant(granularity="unit", finetune=1, finetune_mask=mask), epochs=1)
    _, found, same = search(digits, spec)
    assert not same & FC, "the first layer has no gate and is trained too"
    assert set(found.mask) == {"fc2.weight", "fc3.weight"}


def test_the_commonest_training_class_is_the_constant_answer(bench, digits):
    record = execute(dataclasses.replace(BASE, method="random", epochs=0), 0, bench)
    common = digits.train.y.bincount().argmax()
    assert record.validation.constant == pytest.approx(100 * float((digits.validation.y == common).float().mean()))


def test_silent_units_are_those_that_say_the_same_to_every_image():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0], [0, 1.0, 0]]))
    x, y = torch.tensor([[1.0, -1, 0], [2.0, -3, 0]]), torch.tensor([0, 1])
    # The first unit is active. Each of the others is either never active or disconnected.
    assert measure.silent_units(model, [(x, y)]) == {"1": 3}
    assert measure.silent_units(model, [(x[:1], y[:1]), (x[1:], y[1:])]) == {"1": 3}
    mask = {"0.weight": torch.zeros(4, 3, dtype=torch.bool)}
    assert measure.silent_units(model, [(x, y)], mask) == {"1": 4}
    assert measure.silent_units(nn.Sequential(nn.Linear(3, 2)), [(x, y)]) == {}


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 2, 4, 3)])
def test_silent_units_of_a_transformer_are_features_not_tokens(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Flatten(), nn.LazyLinear(2))
    x, y = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.long)
    model(x)
    with torch.no_grad():
        model[0].weight[1:3] = 0.0
    assert measure.silent_units(model, [(x, y)]) == {"1": 2}


def test_unit_gates_of_a_transformer_close_whole_heads(digits):
    shape, heads = (1, 28, 28), 3
    model = build("timm:vit_tiny_patch16_224", shape, 10, patch_size=7, depth=2, embed_dim=24, num_heads=heads)
    initialise(model, "kaiming_normal", 1.0, 0)
    feed = BatchLoader(digits.train.take(slice(256)), 64, 0)
    task = methods.SearchTask(feed, 0.5, 4, 0, torch.nn.functional.cross_entropy)
    found = methods.get("crbg").find(
        model, task, methods.options("crbg", {"granularity": "unit", "lr": 0.1, "temperature": 0.0})
    )
    for name, counts in found.anatomy["units"].items():
        assert counts["total"] == (heads if name.endswith("attn.proj.weight") else found.mask[name].shape[1])
    proj = found.mask["blocks.0.attn.proj.weight"].reshape(24, heads, 8)
    assert proj.equal(proj[:1, :, :1].expand_as(proj)), "a head's columns stand or fall together"


@pytest.mark.parametrize(("spread", "training"), [(1.0, True), (3.0, True), (1.0, False)])
def test_temperature_zero_gives_the_searched_outputs_their_spread(digits, spread, training):
    shape = (1, 28, 28)
    model = build("conv2", shape, 10, width=0.125, norm="batch")
    initialise(model, "kaiming_normal", 5.0, 0)  # running statistics are still 0 and 1, unlike those of a batch
    model.train(training)
    feed, seen = BatchLoader(digits.train.take(slice(256)), 64, 0), []

    def loss(out, y):
        seen.append(out.detach())
        return torch.nn.functional.cross_entropy(out, y)

    options = methods.options("crbg", {"noise": 0.0, "temperature": 0.0, "spread": spread})
    methods.get("crbg").find(model, methods.SearchTask(feed, 0.5, 1, 0, loss), options)
    assert float((seen[0] - seen[0].mean(0)).std()) == pytest.approx(spread, rel=1e-3)
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {len(seen) if training else 0}, "looking at the outputs leaves no trace in running statistics"
    assert {m.training for m in model.modules()} == {training}


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("cosine", [0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]),
        ("plateau", [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_adam_follows_the_schedule_and_the_decay_rates(monkeypatch, schedule, wanted):
    seen, step = [], torch.optim.Adam.step

    def spy(adam):
        seen.append((adam.param_groups[0]["lr"], adam.param_groups[0]["betas"]))
        return step(adam)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    data = torch.randn(40, 4), torch.arange(40) % 2
    options = {"lr": 1.0, "schedule": schedule, "beta1": 0.5, "beta2": 0.99}
    find_ticket(nn.Linear(4, 2), data, 0.5, epochs=1, batch=4, validation=None, **options)
    assert [lr for lr, _ in seen] == pytest.approx(wanted)
    assert {betas for _, betas in seen} == {(0.5, 0.99)}
