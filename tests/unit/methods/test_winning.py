import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from winning import BASE, RECIPE, SPECS, with_options

from crbg import methods
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.experiments.spec import folder
from crbg.gates import attach
from crbg.measure.accuracy import accuracy
from crbg.measure.batch_norm import recalibrated
from crbg.methods import imp
from crbg.models.initial_weights import initialise
from crbg.models.registry import build
from crbg.runs.artifacts import rebuild
from crbg.runs.execute import execute
from crbg.runs.open_test_set import evaluate
from crbg.runs.readings import recalibration_images
from crbg.runs.setup import Workspace, set_up, stage_cache_for, training_part
from crbg.runs.verify import BARE, PASS
from crbg.search import winning as winning_tickets
from crbg.training.batches import Later
from crbg.training.clock import Clock, OutOfTime
from crbg.training.loop import FitOptions, fit

NORM = dataclasses.replace(SPECS["saliency"], model="conv2", model_args={"width": 0.125, "norm": "batch"}, limit=320)
NORM = dataclasses.replace(NORM, options={**RECIPE, "score": "synflow", "rounds": 3})
EVERY = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture
def bench(tmp_path, digits):
    return Workspace(tmp_path / "results", loaded={"digits": digits})


def new_model(digits, spec=BASE, seed=0):
    model = build(spec.model, digits.in_shape, digits.classes, **spec.model_args)
    initialise(model, spec.init, spec.scale, seed)
    return model


def find(digits, spec, checkpoint=None, clock=None, stages=None):
    model = new_model(digits, spec)
    feed = BatchLoader(training_part(spec, digits), spec.batch, 0, spec.flip, spec.crop)
    redraw = lambda seed: new_model(digits, spec, seed).state_dict()  # noqa: E731
    task = methods.SearchTask(
        feed, spec.density, spec.epochs, 0, nn.functional.cross_entropy, checkpoint, clock, redraw=redraw, stages=stages
    )
    return model, methods.get(spec.method).find(model, task, spec.resolved())


def same(a, b):
    return set(a) == set(b) and all(torch.equal(t, b[n]) for n, t in a.items())


def dense(digits, epochs, whole, lr=0.05, first=0, model=None, mask=None):
    """Train with a plain SGD loop, starting at epoch `first` of the schedule; it is the reference for the tests."""
    model = model or new_model(digits)
    velocity = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    feed = BatchLoader(digits.train, BASE.batch, 0)
    for epoch in range(first, first + epochs):
        for i, (x, y) in enumerate(feed.epoch(epoch)):
            now = (epoch + i / len(feed)) / whole
            rate = lr * (1.0 if now < 0.5 else 0.1 if now < 0.75 else 0.01)
            effective = {n: p * mask[n] if mask else p for n, p in model.named_parameters()}
            loss = nn.functional.cross_entropy(torch.func.functional_call(model, effective, (x,)), y)
            for (n, p), g in zip(
                model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                with torch.no_grad():
                    velocity[n] = 0.9 * velocity[n] + g + 1e-3 * p
                    p -= rate * velocity[n]
    return model


# --- definition of a winning ticket ---


@EVERY
def test_exact_counts_and_trained_weights(digits, spec):
    model, found = find(digits, spec)
    assert found.mask.kept == round(0.2 * found.mask.total)
    assert set(found.changed) == {n for n, _ in model.named_parameters()}
    assert set(found.changed.values()) == {"trained"}
    assert set(found.anatomy["objectives"]) >= {"loss", "kl", "gradnorm"}
    assert not found.soft


@EVERY
def test_the_ticket_is_drawn_on_weights_trained_to_the_rewinding_point(digits, spec):
    found = find(digits, spec)[1]
    twin = dense(digits, 1, 4)
    for n, p in twin.named_parameters():
        torch.testing.assert_close(found.start[n], p.detach(), rtol=1e-3, atol=1e-5)


def test_training_goes_on_from_there_under_the_mask(digits):
    spec = with_options(SPECS["saliency"], score="random")
    model, found = find(digits, spec)
    twin = new_model(digits)
    twin.load_state_dict(found.start, strict=False)
    dense(digits, 3, 4, first=1, model=twin, mask=found.mask)
    for n, p in twin.named_parameters():
        torch.testing.assert_close(model.state_dict()[n], p.detach(), rtol=2e-2, atol=2e-4)


def test_no_ticket_at_all_is_dense_training(digits):
    spec = with_options(dataclasses.replace(SPECS["imp"], density=1.0), rewind=0)
    model, found = find(digits, spec)
    assert found.mask.density == 1.0
    assert found.start == {}
    for n, p in dense(digits, 4, 4).named_parameters():
        torch.testing.assert_close(model.state_dict()[n], p.detach(), rtol=2e-2, atol=2e-4)


def test_without_training_and_rewinding_the_ticket_is_a_strong_one(bench, digits):
    spec = with_options(dataclasses.replace(BASE, epochs=8), objective="loss", rewind=0, train=False, search=8)
    record = execute(spec, 0, bench)
    assert "trained" not in record.roles
    assert record.digests.initial
    assert (folder(bench.results, spec, 0) / "ticket.safetensors").exists()
    assert record.value() > record.controls()["shuffle"] + 20
    assert record.steps == 8 * (record.train_images // 64)


def test_the_search_leaves_statistics_and_weights_as_they_were(digits):
    spec = dataclasses.replace(BASE, model="resnet20", model_args={"width": 0.25}, epochs=1, batch=100)
    spec = with_options(spec, rewind=0, search=1, train=False)
    model, found = find(digits, spec)
    before = new_model(digits, spec)
    assert same(dict(model.state_dict()), dict(before.state_dict()))
    assert not found.changed


@pytest.mark.long
def test_gains_of_batch_norm_are_trained_and_statistics_are_those_of_training(bench):
    spec = dataclasses.replace(
        SPECS["saliency"], model="resnet20", model_args={"width": 0.25, "affine": True}, epochs=2, batch=100
    )
    record = execute(with_options(spec, rewind=0), 0, bench)
    assert any("norm" in n for n in record.roles["trained"])
    readings = record.validation.to_json()["readings"]
    assert set(readings["binary"]) == {"density", "accuracy", "recalibrated"}
    assert set(readings["untrained"]) == {"density", "accuracy"}


def test_the_search_sees_images_without_augmentation(digits, monkeypatch):
    flipped = []
    real = BatchLoader.drawn
    monkeypatch.setattr(BatchLoader, "drawn", lambda self, epoch: flipped.append(epoch) or real(self, epoch))
    spec = with_options(dataclasses.replace(BASE, flip=True, crop=2), rewind=0, train=False)
    find(digits, spec)
    assert not flipped
    find(digits, with_options(spec, train=True))
    assert flipped == [0, 1, 2, 3]


# --- the training recipe ---


def test_the_rate_falls_at_half_and_at_three_quarters():
    assert [winning_tickets.steps(p) for p in (0.0, 0.499, 0.5, 0.749, 0.75, 0.999)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert [
        winning_tickets.steps(e / 90, "thirds", 5 / 90) for e in (0, 1, 5, 29, 31, 59, 61, 79, 81)
    ] == pytest.approx([0.0, 0.2, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_a_search_takes_the_schedule_that_its_options_name(digits, monkeypatch):
    asked = []
    monkeypatch.setattr(winning_tickets, "steps", lambda *how: asked.append(how) or 1.0)
    find(digits, with_options(SPECS["saliency"], drops="thirds", warmup=2.0))
    assert {how[1:] for how in asked} == {("thirds", 2.0 / BASE.epochs)}


def test_the_sum_of_the_loss_is_clipped_as_a_whole(digits):
    """One step of the CTS authors' variant (summed loss, clipped gradient) equals a calculation by hand."""
    spec = with_options(
        dataclasses.replace(SPECS["imp"], density=1.0, epochs=1), rewind=0, clip=2.0, momentum=0.0, weight_decay=0.0
    )
    model = new_model(digits)
    feed = BatchLoader(digits.train.take(slice(64)), 64, 0)
    x, y = next(iter(feed.epoch(0)))
    twin = new_model(digits)
    grads = torch.autograd.grad(nn.functional.cross_entropy(twin(x), y, reduction="sum"), list(twin.parameters()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert norm > 2.0
    methods.get("imp").find(model, methods.SearchTask(feed, 1.0, 1, 0, nn.functional.cross_entropy), spec.resolved())
    for p, q, g in zip(model.parameters(), twin.parameters(), grads, strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.05 * g * 2.0 / norm, rtol=1e-4, atol=1e-6)


def test_later_batches_are_those_of_later_epochs(digits):
    feed = BatchLoader(digits.train, 64, 0)
    later = Later(feed, 2)
    assert len(later) == len(feed)
    for (a, _), (b, _) in zip(feed.epoch(3, 5), later.epoch(1, 5), strict=True):
        assert torch.equal(a, b)


# --- iterative magnitude pruning ---


@pytest.mark.parametrize(
    ("density", "levels"),
    [(0.8, 1), (0.64, 2), (0.107, 10), (0.0074, 22), (0.00738, 22), (0.75, 2), (0.5, 4), (1.0, 0)],
)
def test_levels_drop_a_fifth_until_the_density(density, levels):
    shares = imp.shares(imp.Options(), density)
    assert len(shares) == levels
    assert shares[:-1] == pytest.approx([0.8 ** (i + 1) for i in range(max(0, levels - 1))])
    assert not shares or shares[-1] == density


def test_one_shot_is_one_level():
    assert imp.shares(imp.Options(levels=1), 0.1) == [0.1]
    assert imp.work(imp.Options(rewind=2, levels=1), 0.1, 10) == 2 + 8 + 8


def test_a_level_drops_the_smallest_trained_weights_of_what_is_left(digits):
    spec = with_options(dataclasses.replace(SPECS["imp"], density=0.4))
    found = find(digits, spec)[1]
    trained = dense(digits, 3, 4, first=1, model=dense(digits, 1, 4))
    sizes = torch.cat([w.detach().abs().flatten() for w in attach.weights(trained).values()])
    threshold = sizes.sort(descending=True).values[round(0.4 * len(sizes)) - 1]
    wanted = {n: w.detach().abs() >= threshold for n, w in attach.weights(trained).items()}
    differ = sum(int((found.mask[n] != m).sum()) for n, m in wanted.items())
    assert found.mask.kept == round(0.4 * len(sizes))
    assert differ <= 4  # the plain loop rounds differently


def test_levels_are_nested_and_end_on_the_exact_count(digits, tmp_path):
    spec = with_options(SPECS["imp"], drop=0.5)
    stages = stage_cache_for(set_up(spec, 0, digits), tmp_path, Clock())
    masks = [find(digits, dataclasses.replace(spec, density=d), stages=stages)[1].mask for d in (0.5, 0.25, 0.2)]
    assert [m.kept for m in masks] == [round(d * masks[0].total) for d in (0.5, 0.25, 0.2)]
    for wide, narrow in itertools.pairwise(masks):
        assert (wide & narrow) == narrow


def test_ranks_order_all_weights_as_the_levels_dropped_them(digits):
    found = find(digits, with_options(SPECS["imp"], drop=0.5))[1]
    flat = torch.cat([s.flatten() for s in found.scores.values()])
    assert [int((flat >= level).sum()) for level in (1, 2, 3)] == [round(s * len(flat)) for s in (1, 0.5, 0.25)]
    from crbg.masks.select import select

    assert select(found.scores, found.mask.kept) == found.mask


# --- interruptions ---


@pytest.mark.parametrize("spec", [*SPECS.values(), NORM], ids=[*SPECS, "norm"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_run_is_the_run_that_never_stopped(digits, spec, tmp_path, cached):
    first, whole = find(digits, spec)
    checkpoint, stops = tmp_path / "checkpoint.pt", 0
    for attempt in range(40):
        # Without a cache, a finished stage is repeated from its last checkpoint.
        clock = Clock(stop_after=(6 if spec is NORM else 25) * (1 + attempt * (not cached)))
        stages = stage_cache_for(set_up(spec, 0, digits), tmp_path, clock) if cached else None
        try:
            second, again = find(digits, spec, checkpoint, clock, stages)
            break
        except OutOfTime:
            stops += 1
    else:
        pytest.fail("never finished")
    assert stops >= 2
    assert again.history == whole.history
    assert again.mask == whole.mask
    assert same(dict(first.state_dict()), dict(second.state_dict()))


def test_progress_is_that_of_the_whole_run(bench):
    told = []
    execute(SPECS["imp"], 0, bench, Clock(report=lambda done, total: told.append((done, total))))
    steps = (1 + 2 * 3 + 3) * (len(bench.loaded["digits"].train) // 64)
    assert told == [(i + 1, steps) for i in range(steps)]


# --- controls ---


def test_controls_change_what_they_name_and_nothing_else(digits, tmp_path):
    spec = with_options(SPECS["saliency"], score="snip")
    plain = find(digits, spec)[1]
    found = {c: find(digits, with_options(spec, control=c))[1] for c in ("shuffle", "invert", "random", "reinit")}
    assert found["shuffle"].mask.layer_kept() == found["invert"].mask.layer_kept() == plain.mask.layer_kept()
    assert all(found[c].mask != plain.mask for c in ("shuffle", "invert", "random"))
    for n, m in found["invert"].mask.items():
        kept, dropped = plain.scores[n][m], plain.scores[n][~m]
        assert float(kept.max()) <= float(dropped.min())
    assert (
        len(
            {
                round(k / m.numel(), 2)
                for k, m in zip(found["random"].mask.layer_kept().values(), plain.mask.values(), strict=True)
            }
        )
        == 1
    )
    assert found["reinit"].mask == plain.mask
    assert same(found["shuffle"].start, plain.start)
    fresh = new_model(digits, spec, winning_tickets.REDRAW).state_dict()
    assert same(found["reinit"].start, {n: fresh[n] for n in found["reinit"].start})


def test_a_control_hurts_a_ticket_that_found_its_weights(bench):
    spec = with_options(dataclasses.replace(BASE, density=0.05, epochs=6), objective="loss", search=12, rewind=1)
    ours, random = (execute(with_options(spec, control=c), 0, bench).validation.readings for c in ("none", "random"))
    assert ours["untrained"].value > random["untrained"].value + 25
    assert ours["binary"].value > random["binary"].value


# --- records, evaluation, verification ---


@pytest.mark.parametrize("spec", [*SPECS.values(), NORM], ids=[*SPECS, "norm"])
def test_a_run_is_recorded_evaluated_and_verified(digits, spec, one_run):
    done = one_run(spec)
    bench, record = done.bench, done.record
    assert (done.row.verdict, done.row.remarks) == (
        BARE,
        ("its weights were changed, so it has no ticket file",),
    )
    # With the validation images as the test split, the evaluation must give the same accuracies, although it loads the
    # trained tensors and the rewinding point from files.
    nothing_lossy = torch.tensor([], dtype=torch.int64)
    bench.loaded["digits"] = dataclasses.replace(digits, test=digits.validation, lossy_test=nothing_lossy)
    found = evaluate(done.spec, 0, bench)
    readings = record.validation.readings
    assert found.test.readings == readings
    network = rebuild(folder(bench.results, done.spec, 0))
    assert accuracy(network, digits.validation.batches()) == pytest.approx(readings["binary"].value)
    # The accuracy without lossy images uses the same reading as the main result. Only an additional image is marked
    # lossy, so both accuracies refer to the same images.
    (folder(bench.results, done.spec, 0) / "evaluation.json").unlink()
    last = torch.tensor([len(digits.validation)])
    again = dataclasses.replace(
        digits.validation,
        x=torch.cat([digits.validation.x, digits.validation.x[:1]]),
        y=torch.cat([digits.validation.y, digits.validation.y[:1]]),
    )
    bench.loaded["digits"] = dataclasses.replace(digits, test=again, lossy_test=last)
    clean = evaluate(done.spec, 0, bench).test_without_lossy.binary
    assert clean == dataclasses.replace(readings["binary"], density=None)


def test_readings_are_those_of_the_trained_and_of_the_drawn_ticket(bench, digits):
    record = execute(NORM, 0, bench)
    model, found = find(digits, NORM)
    readings = record.validation.readings
    assert readings["binary"].value == pytest.approx(accuracy(model, digits.validation.batches(), found.mask))
    drawn = new_model(digits, NORM)
    drawn.load_state_dict(found.start, strict=False)
    with recalibrated(drawn, recalibration_images(digits), found.mask):
        assert readings["untrained"].value == pytest.approx(accuracy(drawn, digits.validation.batches(), found.mask))
    assert readings["binary"].value > readings["untrained"].value


def test_a_ticket_on_warm_weights_that_is_not_trained_has_its_statistics_estimated_again(bench):
    spec = with_options(NORM, train=False)
    reading = execute(spec, 0, bench).validation.readings
    network = rebuild(folder(bench.results, spec, 0))
    assert accuracy(network, bench.data("digits").validation.batches()) == pytest.approx(reading["binary"].value)
    assert set(reading["binary"].to_json()) == {"density", "accuracy"}
    assert "untrained" not in reading


@pytest.mark.long
def test_a_layer_that_a_ticket_does_without_is_no_collapse_once_weights_are_trained(bench, monkeypatch):
    from crbg.search import saliency

    def all_but_one(model, given, *rest):
        return {n: torch.full(w.shape, 0.0 if n == "stage1.0.conv1.weight" else 1.0) for n, w in given.items()}

    monkeypatch.setitem(saliency.SCORES, "snip", all_but_one)
    spec = dataclasses.replace(
        SPECS["saliency"], model="resnet20", model_args={"width": 0.25}, density=0.5, limit=200, batch=100, epochs=1
    )
    spec = with_options(spec, rewind=0, rounds=1)
    record = execute(spec, 0, bench)
    assert record.layers["stage1.0.conv1.weight"].kept == 0
    assert record.status == "ok"
    assert execute(with_options(spec, train=False), 0, bench).status == "collapse"


def test_a_strong_ticket_of_cts_verifies(one_run):
    row = one_run(with_options(BASE, rewind=0, train=False)).row
    assert (row.verdict, row.remarks) == (PASS, ())


# Training loss of the ticket in its first and last epoch, for each (method, VERSION).
NUMBERS = {
    ("cts", 1): [1.22478, 0.35271],
    ("clipped", 1): [0.20925, 0.12344],
    ("lagrange", 1): [0.58335, 0.28949],
    ("imp", 1): [0.23644, 0.12247],
    ("saliency", 1): [0.66793, 0.21801],
}


@EVERY
def test_numerics_of_a_version_are_pinned(digits, spec, request):
    key = (request.node.callspec.id, methods.get(spec.method).VERSION)
    history = find(digits, spec)[1].history
    first, last = NUMBERS[key]
    assert history[0]["loss"] == pytest.approx(first, rel=2e-2)
    assert history[-1]["loss"] == pytest.approx(last, rel=5e-2)


# --- gates and controllers of the search ---


def test_an_objective_takes_the_place_of_the_loss(digits):
    """With an objective, `fit` minimises the objective instead of the loss."""
    model = new_model(digits)
    scale = nn.Parameter(torch.ones(()))
    seen = []

    def objective(m, x, y):
        seen.append((m is model, len(x)))
        return (scale - 3.0) ** 2

    history = fit(
        model,
        BatchLoader(digits.train, 256, 0),
        torch.optim.SGD([scale], lr=0.1),
        2,
        0,
        FitOptions(schedule=lambda p: 1.0, objective=objective),
    )
    assert seen == [(True, 256)] * len(seen)
    assert len(seen) == 2 * (len(digits.train) // 256)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: with_options(BASE, gate="clip"), "gate = 'clip' is unknown"),
        (lambda: with_options(BASE, objective="klx"), "objective = 'klx' is unknown"),
        (lambda: with_options(BASE, controller="pid"), "controller = 'pid' is unknown"),
        (lambda: with_options(BASE, budget="soft"), "budget = 'soft' is unknown"),
        (lambda: with_options(BASE, gate="clipped", objective="grad"), "second derivatives"),
        (lambda: with_options(BASE, gate="clipped", budget="bernoulli"), "budget is for Concrete gates"),
        (lambda: with_options(BASE, search=0), "search = 0 must be at least 1"),
        (lambda: with_options(BASE, tau=0.0), "tau = 0.0 must be above 0"),
        (lambda: with_options(BASE, control="swap"), "control = 'swap' is unknown"),
        (lambda: with_options(BASE, rewind=4), "rewind 4 must lie between 0 and the 4 epochs"),
        (lambda: with_options(BASE, optimiser="sdg"), "optimiser = 'sdg' is unknown.*sgd"),
        (lambda: with_options(SPECS["imp"], drop=1.0), "drop = 1.0 must be below 1"),
        (lambda: dataclasses.replace(BASE, density=None), "needs a density"),
    ],
)
def test_nonsense_is_refused(digits, spec, message):
    with pytest.raises(CrbgError, match=message):
        find(digits, spec())


def test_reinit_needs_to_know_the_distribution(digits):
    model = new_model(digits)
    task = methods.SearchTask(BatchLoader(digits.train, 64, 0), 0.5, 2, 0, nn.functional.cross_entropy)
    with pytest.raises(CrbgError, match="distribution of initial weights"):
        methods.get("saliency").find(model, task, methods.options("saliency", {"control": "reinit"}))


def test_the_library_finds_winning_tickets_too(digits):
    from crbg import find_ticket

    model = new_model(digits)
    found = find_ticket(
        model, (digits.train.inputs(slice(None)), digits.train.y), 0.1, "imp", epochs=3, batch=64, lr=0.05, drop=0.7
    )
    kept = found.apply(model)
    assert sum(int((w != 0).sum()) for w in attach.weights(kept).values()) <= found.mask.kept
    x, y = digits.validation.inputs(slice(None)), digits.validation.y
    assert float((kept(x).argmax(1) == y).float().mean()) > 0.8


def test_synflow_after_a_warm_up_looks_at_no_image(digits):
    """SynFlow ignores images, so its mask must not depend on the batch, not even through batch norm statistics."""
    masks = [find(digits, with_options(NORM, per_class=n))[1].mask for n in (1, 10)]
    assert masks[0] == masks[1]


def test_dropout_sleeps_while_a_ticket_is_searched_and_wakes_for_all_training(digits, monkeypatch):
    seen = {"search": set(), "train": set()}

    class Watch(nn.Dropout):
        def forward(self, x):
            seen[
                "search"
                if attach.attached_gates(owner) and any(g.sampling for g in attach.attached_gates(owner).values())
                else "train"
            ].add(self.training)
            return super().forward(x)

    owner = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), Watch(0.5), nn.Linear(16, 10))
    task = methods.SearchTask(BatchLoader(digits.train, 64, 0), 0.5, 2, 0, nn.functional.cross_entropy)
    methods.get("cts").find(owner, task, methods.options("cts", {"search": 1, "lr": 0.05, "objective": "loss"}))
    assert seen["search"] == {False}
    assert True in seen["train"]
    awake, real = [], winning_tickets.train

    def watched(*args):
        seen["train"].clear()
        rows = real(*args)
        awake.append(seen["train"].copy())
        return rows

    monkeypatch.setattr(winning_tickets, "train", watched)
    monkeypatch.setattr(imp, "train", watched)
    methods.get("imp").find(owner, task, methods.options("imp", {"drop": 0.5, "lr": 0.05}))
    assert awake == [{True}, {True}]


def test_what_the_user_froze_stays_frozen(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    model[1].bias.requires_grad_(False)
    before = model[1].bias.clone()
    task = methods.SearchTask(BatchLoader(digits.train, 64, 0), 0.5, 2, 0, nn.functional.cross_entropy)
    found = methods.get("saliency").find(model, task, methods.options("saliency", {"lr": 0.05}))
    assert torch.equal(model[1].bias, before)
    assert not model.training
    assert "1.bias" not in found.changed
    assert "3.bias" in found.changed
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(CrbgError, match="every parameter of the model is frozen"):
        methods.get("saliency").find(model, task, methods.options("saliency", {}))


def test_soft_labels_and_progress_in_the_library(digits):
    from crbg import find_ticket

    model, told = new_model(digits), []
    soft = nn.functional.one_hot(digits.train.y, 10).float()
    find_ticket(
        model,
        (digits.train.inputs(slice(None)), soft),
        0.5,
        "imp",
        epochs=2,
        batch=64,
        lr=0.05,
        drop=0.5,
        rewind=1,
        validation=None,
        progress=lambda done, total: told.append((done, total)),
    )
    steps = (1 + 1 + 1) * math.ceil(len(digits.train) / 64)
    assert told == [(i + 1, steps) for i in range(steps)]


@pytest.mark.parametrize(
    ("method", "options"), [("saliency", {"score": "grasp"}), ("cts", {"objective": "grad", "search": 1})]
)
def test_second_derivatives_of_attention(digits, method, options):
    args = {"patch_size": 7, "depth": 1, "embed_dim": 24, "num_heads": 2}
    spec = dataclasses.replace(
        BASE, model="timm:vit_tiny_patch16_224", model_args=args, method=method, epochs=1, limit=64, options=options
    )
    found = find(digits, spec)[1]
    assert found.mask.kept == round(0.2 * found.mask.total)


def test_a_checkpoint_of_another_ticket_is_refused(digits, tmp_path, monkeypatch):
    spec = with_options(SPECS["saliency"], rewind=0)
    with pytest.raises(OutOfTime):
        find(digits, spec, tmp_path / "checkpoint.pt", Clock(stop_after=20))
    with pytest.raises(CrbgError, match=r"belongs to another ticket; delete checkpoint\.ticket\.pt"):
        find(digits, with_options(spec, score="random"), tmp_path / "checkpoint.pt")


def test_the_last_state_of_a_search_is_recorded(digits):
    anatomy = find(digits, SPECS["cts"])[1].anatomy
    assert {"expected", "lambda", "density"} <= set(anatomy["search"])
