import contextlib
import copy
import math
import time

import pytest
import torch
from torch import nn

from crbg import methods, models
from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.gates.attach import weights
from crbg.methods.contract import SearchTask
from crbg.models.initial_weights import initialise, tensor_digest
from crbg.training.batches import LoaderBatches
from crbg.training.checkpoint import load_checkpoint, save_checkpoint
from crbg.training.clock import Clock, Collapse, OutOfTime
from crbg.training.hooks import SearchHook
from crbg.training.loop import FitOptions, fit
from crbg.training.schedules import cosine

pytestmark = pytest.mark.xdist_group("loop")

EPOCHS, PER_EPOCH = 3, 7
TOTAL = EPOCHS * PER_EPOCH
METHODS = {
    "normal": ("crbg", {}),
    "antithetic": ("crbg", {"source": "antithetic"}),
    "everything": ("crbg", {"learn_sigma": True, "temperature": 0.0, "penalty": "induce_sparse+0.5*decision_quad"}),
    "annealed": ("crbg", {"anneal_to": 0.1, "granularity": "unit+input"}),
    "edge_popup": ("edge_popup", {}),
    "dense": ("dense", {}),
    "dense_sgd": ("dense", {"optimiser": "sgd", "lr": 0.1}),
}


@pytest.fixture(scope="session")
def feed(digits):
    p = digits.train
    return BatchLoader(ImagePart(p.x[:230], p.y[:230], p.mean, p.std), 32, seed=5)


def lenet():
    model = models.build("lenet-16-12", (1, 28, 28), 10)
    initialise(model, "uniform", 0.3, 0)
    return model


def convolutional():
    """Return a network with running statistics and dropout, because a resumed search must restore the state of both."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(144, 10),
    )  # fmt: skip
    initialise(model, "kaiming_normal", 1.0, 0)
    return model


def search(kind, feed, checkpoint=None, clock=None, build=lenet, seed=1):
    """Run a search on a new model; return the result and the state of the model."""
    name, options = METHODS[kind]
    model = build()
    task = SearchTask(feed, 0.4, EPOCHS, seed, nn.functional.cross_entropy, checkpoint, clock)
    found = methods.get(name).find(model, task, methods.options(name, options))
    return found, {n: t.clone() for n, t in model.state_dict().items()}


def same(a, b):
    (found_a, state_a), (found_b, state_b) = a, b
    assert found_a.history == found_b.history
    assert found_a.mask == found_b.mask
    for side in ("soft", "scores"):
        one, other = getattr(found_a, side), getattr(found_b, side)
        assert list(one) == list(other)
        assert all(torch.equal(one[n], other[n]) for n in one)
    assert tensor_digest(state_a) == tensor_digest(state_b)


@pytest.fixture(scope="session")
def whole(feed):
    done = {}

    def get(kind, build=lenet):
        if (kind, build) not in done:
            done[kind, build] = search(kind, feed, build=build)
        return done[kind, build]

    return get


def interrupted(kind, feed, path, steps, build=lenet):
    """Run a search that stops after each number in `steps` and resumes from its checkpoint; return the final result."""
    for n in steps:
        with pytest.raises(OutOfTime):
            search(kind, feed, path, Clock(stop_after=n), build)
    return search(kind, feed, path, build=build)


# exact resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("steps", [(3,), (PER_EPOCH,), (PER_EPOCH + 1, 4, 1), (TOTAL - 1,)], ids=str)
def test_a_resumed_search_is_the_search_that_never_stopped(kind, steps, feed, whole, tmp_path):
    same(interrupted(kind, feed, tmp_path / "checkpoint.pt", steps), whole(kind))


@pytest.mark.parametrize("kind", ["normal", "edge_popup", "dense"])
def test_running_statistics_and_dropout_resume_too(kind, feed, whole, tmp_path):
    same(interrupted(kind, feed, tmp_path / "checkpoint.pt", (5, 9), convolutional), whole(kind, convolutional))


def test_searches_leave_the_raw_weights_as_they_are(whole):
    for kind in ("normal", "antithetic", "annealed", "edge_popup"):
        assert tensor_digest(whole(kind)[1]) == tensor_digest(lenet().state_dict())
    assert tensor_digest(whole("dense")[1]) != tensor_digest(lenet().state_dict())


def test_another_seed_gives_another_search(feed, whole):
    found, _ = search("normal", feed, seed=2)
    assert found.history != whole("normal")[0].history


def test_saving_often_changes_nothing(feed, whole, tmp_path):
    same(search("antithetic", feed, tmp_path / "c.pt", Clock(save_every=0.0)), whole("antithetic"))
    assert load_checkpoint(tmp_path / "c.pt")["step"] == TOTAL - 1


def test_a_deadline_stops_at_once_and_leaves_a_checkpoint(feed, whole, tmp_path):
    path = tmp_path / "new" / "checkpoint.pt"
    with pytest.raises(OutOfTime, match=f"after 0 of {TOTAL} steps"):
        search("normal", feed, path, Clock(deadline=time.monotonic()))
    assert load_checkpoint(path)["step"] == 0
    same(search("normal", feed, path), whole("normal"))


def test_a_deadline_in_the_middle(feed, whole, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(deadline=10.0, save_every=4.0, report=lambda done, total: now.append(now.pop() + 1))
    with pytest.raises(OutOfTime, match=f"after 10 of {TOTAL} steps"):
        search("normal", feed, tmp_path / "c.pt", clock)
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 10
    assert load_checkpoint(tmp_path / "c.previous")["step"] == 8
    monkeypatch.undo()
    same(search("normal", feed, tmp_path / "c.pt"), whole("normal"))


def test_out_of_time_without_a_checkpoint_still_stops(feed):
    with pytest.raises(OutOfTime):
        search("normal", feed, None, Clock(stop_after=2))


# damaged checkpoints ------------------------------------------------------------------------------------------------


def two_checkpoints(feed, path):
    for n in (5, 4):
        with pytest.raises(OutOfTime):
            search("antithetic", feed, path, Clock(stop_after=n))
    assert load_checkpoint(path)["step"] == 9
    return path.with_suffix(".previous")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(share, feed, whole, tmp_path):
    path = tmp_path / "checkpoint.pt"
    previous = two_checkpoints(feed, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.warns(UserWarning, match="is damaged .*continuing from the previous one"):
        assert load_checkpoint(path)["step"] == 5
    same(search("antithetic", feed, path), whole("antithetic"))
    previous.write_bytes(b"")
    path.write_bytes(b"not a checkpoint")
    assert load_checkpoint(path) is None
    same(search("antithetic", feed, path), whole("antithetic"))


def test_a_missing_checkpoint_falls_back_to_the_one_before(feed, tmp_path):
    path = tmp_path / "checkpoint.pt"
    two_checkpoints(feed, path)
    path.unlink()
    assert load_checkpoint(path)["step"] == 5
    assert load_checkpoint(None) is None
    assert load_checkpoint(tmp_path / "other.pt") is None


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the checkpoint ran code",))


def test_a_checkpoint_is_not_unpickled(tmp_path):
    torch.save({"step": Trap()}, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt") is None


def test_saving_keeps_two_and_no_scraps(tmp_path):
    for step in range(3):
        save_checkpoint(tmp_path / "c.pt", {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.previous", "c.pt"]
    assert load_checkpoint(tmp_path / "c.pt") == {"step": 2}


# randomness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["done", "out of time", "collapse"])
def test_the_global_generator_is_given_back(ending, feed):
    model, clock = lenet(), Clock(stop_after=2 if ending == "out of time" else None)
    factor = math.nan if ending == "collapse" else 1.0
    task = SearchTask(feed, 0.4, 1, 0, lambda out, y: factor * nn.functional.cross_entropy(out, y), clock=clock)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    expected = {
        "done": contextlib.nullcontext(),
        "out of time": pytest.raises(OutOfTime),
        "collapse": pytest.raises(Collapse),
    }
    with expected[ending]:
        methods.get("crbg").find(model, task, methods.options("crbg", {}))
    assert torch.equal(before, torch.get_rng_state())


def test_a_search_does_not_depend_on_what_ran_before(feed, whole):
    torch.manual_seed(9)
    torch.randn(3)
    search("antithetic", feed, seed=8)
    same(search("normal", feed), whole("normal"))
    same(search("dense", feed, build=convolutional), whole("dense", convolutional))


# the loop -----------------------------------------------------------------------------------------------------------


BATCHES = [(torch.randn(6, 3, generator=torch.Generator().manual_seed(i)), torch.arange(6) % 2) for i in range(4)]


def small_fit(model=None, batches=BATCHES, epochs=2, lr=0.5, **options):
    model = model or nn.Linear(3, 2)
    return fit(
        model,
        LoaderBatches(batches, torch.device("cpu")),
        torch.optim.SGD(model.parameters(), lr),
        epochs,
        0,
        FitOptions(**options),
    )


def test_the_loop_is_plain_gradient_descent():
    model, losses = nn.Linear(3, 2), []
    twin = copy.deepcopy(model)
    history = small_fit(model)
    optimiser = torch.optim.SGD(twin.parameters(), 0.5)
    for i in range(8):
        optimiser.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * i / 8)) / 2
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(twin(BATCHES[i % 4][0]), BATCHES[i % 4][1])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert tensor_digest(model.state_dict()) == tensor_digest(twin.state_dict())
    expected = [{"epoch": 1.0, "loss": sum(losses[:4]) / 4}, {"epoch": 2.0, "loss": sum(losses[4:]) / 4}]
    assert history == expected


class Diary(SearchHook):
    def __init__(self, optimiser):
        self.optimiser, self.calls, self.rates = optimiser, [], []

    def before_forward(self, progress):
        self.calls.append(("before", progress))

    def after_backward(self, progress):
        self.calls.append(("gradient", progress))
        self.rates.append([g["lr"] for g in self.optimiser.param_groups])

    def after_step(self, progress):
        self.calls.append(("after", progress))

    def log(self):
        self.calls.append("log")
        return {"calls": len(self.calls)}


def test_hooks_are_called_in_order_and_rates_follow_the_cosine():
    model = nn.Linear(3, 2)
    optimiser = torch.optim.SGD([{"params": [model.weight], "lr": 0.3}, {"params": [model.bias], "lr": 0.01}])
    diary = Diary(optimiser)
    history = fit(model, LoaderBatches(BATCHES, torch.device("cpu")), optimiser, 2, 0, FitOptions(search=diary))
    steps = [(hook, i / 8) for i in range(8) for hook in ("before", "gradient", "after")]
    assert diary.calls == [*steps[:12], "log", *steps[12:], "log"]
    assert [row["calls"] for row in history] == [13, 26]
    factors = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert diary.rates == [pytest.approx([0.3 * f, 0.01 * f]) for f in factors]


def test_a_resumed_fit_keeps_the_rates_of_the_whole(tmp_path):
    rates = []
    for stop in (5, None):
        model = nn.Linear(3, 2)
        optimiser = torch.optim.SGD(model.parameters(), 0.4)
        diary, clock = Diary(optimiser), Clock(stop_after=stop)
        options = FitOptions(search=diary, checkpoint=tmp_path / "c.pt", clock=clock)
        if stop:
            with pytest.raises(OutOfTime):
                fit(model, LoaderBatches(BATCHES, torch.device("cpu")), optimiser, 2, 0, options)
        else:
            fit(model, LoaderBatches(BATCHES, torch.device("cpu")), optimiser, 2, 0, options)
        rates += diary.rates
    assert [r[0] for r in rates] == pytest.approx([0.4 * cosine(i / 8) for i in range(8)])


def test_cosine_runs_from_one_to_zero():
    assert [cosine(p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([1.0, 0.75, 0.5, 0.0])


def test_the_clock_is_told_of_every_step():
    told, clock = [], Clock(report=lambda *a: told.append(a))
    small_fit(clock=clock)
    assert told == [(i, 8) for i in range(1, 9)]
    assert clock.steps == 8


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))


def test_carried_modules_are_part_of_the_checkpoint(tmp_path):
    for stop, expected in ((3, 3), (None, 8)):
        counter = Counter()

        def loss(out, y, counter=counter):
            counter.seen += 1
            return nn.functional.cross_entropy(out, y)

        options = {"carried": [counter], "loss": loss, "checkpoint": tmp_path / "c.pt", "clock": Clock(stop_after=stop)}
        if stop:
            with pytest.raises(OutOfTime):
                small_fit(**options)
        else:
            small_fit(**options)
        assert counter.seen == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_collapse(bad):
    calls = []

    def loss(out, y):
        calls.append(1)
        value = nn.functional.cross_entropy(out, y)
        return value * bad if len(calls) == 8 else value  # the last step of epoch 2: weights are still finite

    with pytest.raises(Collapse, match="epoch 2 of 3"):
        small_fit(epochs=3, loss=loss)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(CrbgError, match="there is no batch to train on"):
        small_fit(batches=[])


# loaders ------------------------------------------------------------------------------------------------------------


class OneWay:
    """An iterator that has a length but can be used only once."""

    def __len__(self):
        return 2

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


def test_a_loader_that_can_be_walked_only_once_is_refused():
    with pytest.raises(CrbgError, match="iterated only once"):
        LoaderBatches((b for b in BATCHES), torch.device("cpu"))
    with pytest.raises(CrbgError, match="iterated only once"):
        LoaderBatches(OneWay(), torch.device("cpu"))


def test_a_loader_starts_where_it_is_asked_to():
    batches = LoaderBatches(BATCHES, torch.device("cpu"))
    assert len(batches) == 4
    assert [x is b[0] for (x, _), b in zip(batches.epoch(3, start=2), BATCHES[2:], strict=True)] == [True, True]
    assert len(list(batches.epoch(0))) == 4


def test_a_feed_starts_where_it_is_asked_to(feed):
    every, late = list(feed.epoch(1)), list(feed.epoch(1, start=4))
    assert len(every) == len(feed) == PER_EPOCH
    assert len(late) == 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(every[4:], late, strict=True))


def test_gates_of_the_searched_network_are_gone(feed):
    model = lenet()
    task = SearchTask(feed, 0.4, 1, 0, nn.functional.cross_entropy)
    methods.get("crbg").find(model, task, methods.options("crbg", {}))
    assert list(model.state_dict()) == list(weights(lenet()))
    assert all(w.requires_grad for w in weights(model).values())
