import copy

import numpy as np
import pytest
import torch
from networks import randn, same_bytes, tiny
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from crbg import measure
from crbg.api import find_ticket
from crbg.errors import CrbgError
from crbg.gates.attach import attached_gates
from crbg.masks import controls
from crbg.masks.mask import Mask
from crbg.masks.select import keep_count
from crbg.models.initial_weights import tensor_digest
from crbg.ticket import Ticket

# tickets of models outside the registry -------------------------------------------------------------------------------


X = randn(64, 1, 6, 6)
Y = (X.mean((1, 2, 3)) > 0).long() + (X[:, 0, 0, 0] > 0.5).long()
DATA = {
    "pair": (X, Y),
    "list of batches": [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)],
    "two batches": [(X[:32], Y[:32]), (X[32:], Y[32:])],
    "loader": DataLoader(TensorDataset(X, Y), 16),
}


@pytest.mark.parametrize("kind", DATA)
def test_find_ticket_takes_any_loader_and_changes_no_weight(kind):
    model = tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    told = []
    found = find_ticket(
        model, DATA[kind], 0.5, epochs=3, batch=16, progress=lambda done, total: told.append((done, total))
    )
    batches = 2 if kind == "two batches" else 4
    assert told == [(i + 1, 3 * batches) for i in range(3 * batches)]
    assert all(same_bytes(p.detach(), before[n]) for n, p in model.named_parameters())
    assert not attached_gates(model)
    assert found.exact.kept == keep_count(0.5, 54 + 288)
    assert [row["epoch"] for row in found.history] == [1.0, 2.0, 3.0]
    assert found.apply(model) is model
    assert int((model.head.weight != 0).sum()) == found.mask.layer_kept()["head.weight"]


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ((torch.rand(32, 5), torch.zeros(31, dtype=torch.long)), {}, "32 inputs and 31 labels"),
        (
            (torch.rand(32, 5), torch.zeros(32)),
            {},
            r"loss cannot take outputs \(32, 3\) float32 and labels \(32,\) float32",
        ),
        (torch.rand(32, 5), {}, "a pair"),
        ((torch.rand(32, 5), torch.zeros(32, dtype=torch.long)), {"density": 0.0}, r"0.0 is not in \(0, 1\]"),
        ((torch.rand(32, 5), torch.zeros(32, dtype=torch.long)), {"epochs": 0}, "at least 1"),
        ((torch.rand(32, 5), torch.zeros(32, dtype=torch.long)), {"epochs": 1.5}, "whole number"),
    ],
)
def test_find_ticket_names_what_is_wrong_with_the_request(data, options, words):
    with pytest.raises(CrbgError, match=words):
        find_ticket(nn.Linear(5, 3), data, **{"density": 0.5, "epochs": 1} | options)


@pytest.mark.parametrize(
    "x", [torch.rand(32, 1, 7), torch.rand(32, 8), torch.randint(0, 9, (32, 5))], ids=["32x1x7", "32x8", "integers"]
)
def test_find_ticket_names_data_that_the_model_cannot_take(x):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model[1].eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CrbgError, match=rf"cannot take the data, inputs \(32, {x.shape[1]}.*\) {str(x.dtype)[6:]}"):
        find_ticket(model, (x, torch.zeros(32, dtype=torch.long)), 0.5, epochs=1)
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True]


def test_find_ticket_learns():
    model = tiny()
    found = find_ticket(model, (X, Y), 0.5, epochs=60, batch=16, lr=0.05)
    assert found.mask.density == pytest.approx(0.5, rel=0.021)
    shuffled = controls.shuffle(found.mask, 0)
    initial = tiny()
    batches = [(X, Y)]
    with measure.recalibrated(initial, [X], found.mask):
        chosen = measure.accuracy(initial, batches, found.mask)
    with measure.recalibrated(initial, [X], shuffled):
        assert chosen > measure.accuracy(initial, batches, shuffled) + 15


def test_a_ticket_that_missed_its_density_keeps_the_exact_count():
    missed = find_ticket(tiny(), (X, Y), 0.1, epochs=1, batch=16, steer="penalty")
    assert sum(int((s > 0.5).sum()) for s in missed.scores.values()) > 100
    assert missed.mask == missed.exact
    assert missed.mask.kept == keep_count(0.1, 342) == 34
    free = find_ticket(tiny(), (X, Y), None, epochs=2, batch=16, weight=0.1)
    assert free.mask == Mask({n: s > 0.5 for n, s in free.scores.items()})


def test_find_ticket_is_repeatable_and_takes_a_pair_in_shuffled_order():
    found = []
    for seed, elsewhere in ((3, 0), (3, 1), (4, 0)):
        model = tiny()
        torch.manual_seed(elsewhere)  # the state of the caller's generator has no effect
        found.append(find_ticket(model, (X, Y), 0.4, epochs=2, batch=16, seed=seed))
    one, two, other = found
    assert one.history == two.history
    assert one.mask == two.mask
    assert one.history != other.history


def test_find_ticket_with_a_loss_of_ones_own():
    model, target = tiny(outputs=1), X.mean((1, 2, 3))[:, None]
    before = tensor_digest(dict(model.named_parameters()))
    found = find_ticket(model, (X, target), None, loss=nn.functional.mse_loss, epochs=15, batch=16, weight=0.0, lr=0.05)
    assert found.history[-1]["loss"] < 0.7 * found.history[0]["loss"]
    assert tensor_digest(dict(model.named_parameters())) == before


def test_find_ticket_by_edge_popup():
    model = tiny()
    before = tensor_digest(dict(model.named_parameters()))
    found = find_ticket(model, (X, Y), 0.25, method="edge_popup", epochs=2, batch=16, lr=0.2, scaled=False)
    assert found.mask.layer_kept() == {"conv.weight": keep_count(0.25, 54), "head.weight": keep_count(0.25, 288)}
    assert tensor_digest(dict(model.named_parameters())) == before


def test_find_ticket_may_train_only_where_the_method_says_so():
    model = tiny()
    before = copy.deepcopy(model)
    found = find_ticket(model, (X, Y), None, method="dense", epochs=1, batch=16)
    assert set(found.changed.values()) == {"trained"}
    assert not torch.equal(model.head.weight, before.head.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "crgb"}, "unknown method 'crgb': did you mean 'crbg'"),
        ({"noize": 0.1}, "find_ticket and its method crbg have no argument 'noize': did you mean 'noise'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"batch_size": 8}, "find_ticket has no argument 'batch_size'; use `batch`"),
        ({"sparsity": 0.9, "density": ...}, "use `density`, which is 1 - sparsity"),
        ({"patience": 3}, r"no argument 'patience': \d+ names are known"),
        ({"density": ...}, "pass `density`, the fraction of weights to keep"),
        ({"density": 10}, r"not in \(0, 1\]; for 10 %, pass 0\.1;"),
        ({"lr": "fast"}, r"crbg\.lr = 'fast' is str, not float"),
        ({"granularity": "layer"}, "granularity = .layer. is unknown"),
        ({"penalty": "induce"}, "unknown penalty"),
    ],
)
def test_find_ticket_refuses_unknown_methods_and_options(options, message):
    with pytest.raises(CrbgError, match=message):
        find_ticket(tiny(), (X, Y), **{"density": 0.5, "epochs": 1} | options)


def test_find_ticket_refuses_what_it_cannot_walk_or_search():
    with pytest.raises(CrbgError, match="iterated only once"):
        find_ticket(tiny(), ((X, Y) for _ in range(2)), 0.5)
    with pytest.raises(CrbgError, match="no parameters"):
        find_ticket(nn.ReLU(), (X, Y), 0.5)
    with pytest.raises(CrbgError, match="needs a density"):
        find_ticket(tiny(), (X, Y), None, method="edge_popup")


def test_a_loss_that_changes_a_weight_is_found_out():
    model = tiny()

    def meddling(out, y):
        with torch.no_grad():
            model.conv.bias.add_(1e-3)
        return nn.functional.cross_entropy(out, y)

    with pytest.raises(CrbgError, match=r"the search changed 'conv\.bias'"):
        find_ticket(model, (X, Y), 0.5, loss=meddling, epochs=1, batch=16)


class Loud(nn.Module):
    """A two-layer network with batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


def some_batches():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=g)
    return x, (x[:, :3]).argmax(1)


def test_a_failing_search_leaves_the_model_without_gates():
    model, (x, y) = Loud(), some_batches()

    calls = []

    def bad(out, labels):
        calls.append(1)
        if len(calls) > 6:  # after the check of the first batch
            raise RuntimeError("no loss today")
        return nn.functional.cross_entropy(out, labels)

    with pytest.raises(RuntimeError, match="no loss today"):
        find_ticket(model, (x, y), 0.5, loss=bad, epochs=2, batch=16)
    assert not attached_gates(model)
    assert find_ticket(model, (x, y), 0.5, epochs=1, batch=16).mask.total == 8 * 16 + 16 * 3


def test_find_ticket_is_a_function_of_its_seed_and_leaves_running_statistics_alone():
    model, (x, y) = Loud(), some_batches()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
    masks = []
    for other in (1, 2):
        torch.manual_seed(other)
        masks.append(find_ticket(model, loader, 0.5, epochs=3).mask)
    assert masks[0] == masks[1]
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_an_applied_ticket_has_the_statistics_of_the_sparse_network_and_survives_a_file(tmp_path):
    model, (x, y) = Loud(), some_batches()
    twin = copy.deepcopy(model)
    found = find_ticket(model, (x, y), 0.5, "edge_popup", epochs=2, batch=16)
    norm = found.apply(model).norm
    hidden = model.a(x)  # four batches of equal size, so the mean of their means is the overall mean
    torch.testing.assert_close(norm.running_mean, hidden.mean(0))
    found.ticket().save(tmp_path / "mine.safetensors")
    again = Ticket.load(tmp_path / "mine.safetensors").apply(twin)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_the_temperature_of_the_search_belongs_to_the_ticket(tmp_path):
    model, (x, y) = Linear(), some_batches()
    found = find_ticket(model, (x, y), 0.5, epochs=1, batch=16)
    assert found.logit_scale not in (0, 1)
    found.ticket().save(tmp_path / "mine")
    assert Ticket.load(tmp_path / "mine").logit_scale == found.logit_scale
    assert find_ticket(model, (x, y), 0.5, epochs=1, batch=16, temperature=3.0).logit_scale == 3
    assert find_ticket(model, (x, y), 0.5, "edge_popup", epochs=1, batch=16).logit_scale == 1


def test_arrays_and_data_sets_are_data_too():
    x, y = some_batches()
    masks = [
        find_ticket(Linear(), data, 0.5, epochs=1, batch=16).mask.digest()
        for data in ((x, y), (x.numpy(), y.numpy()), TensorDataset(x, y))
    ]
    assert len(set(masks)) == 1
    with pytest.raises(CrbgError, match="batch 0 must be"):
        find_ticket(Linear(), (x, y), 0.5, batch=0)
    with pytest.raises(CrbgError, match=r"density '0\.1' is not a number"):
        find_ticket(Linear(), (x, y), "0.1")


# data, outputs and losses of any kind -------------------------------------------------------------------------------


class Masked(nn.Module):
    """A network of two inputs, whose outputs are an object."""

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, outputs)

    def forward(self, x, mask=None):
        h = torch.relu(self.a(x if mask is None else x * mask))
        return {"logits": self.b(h), "count": torch.ones(len(x), dtype=torch.long)}


def table():
    x, y = some_batches()
    return {"x": x, "mask": torch.ones_like(x), "target": y}


def by_hand(model, batch):
    out = model(batch["x"], mask=batch["mask"])
    return out["logits"], batch["target"]


def own_loss(model, batch):
    return F.cross_entropy(*by_hand(model, batch))


EVERY_METHOD = {
    "crbg": {"noise": 0.25},
    "edge_popup": {},
    "concrete": {},
    "gem_miner": {},
    "imp": {"levels": 1},
    "saliency": {},
    "cts": {"search": 1},
    "dense": {},
}


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("forward", [by_hand, own_loss], ids=["outputs", "loss"])
def test_forward_takes_batches_of_any_kind_in_every_method(method, forward):
    options = EVERY_METHOD[method] | ({"objective": "loss"} if method == "cts" and forward is own_loss else {})
    density = None if method == "dense" else 0.5
    found = find_ticket(Masked(), table(), density, method, epochs=1, batch=32, forward=forward, **options)
    assert found.mask.total == 8 * 16 + 16 * 3
    assert found.report.ticket.accuracy is not None, "the cross entropy is seen inside the user's function too"


def test_forward_gives_the_same_ticket_as_the_plain_form():
    x, y = some_batches()
    masks = [
        find_ticket(Masked(), data, 0.5, epochs=2, batch=16, **more).mask
        for data, more in (
            ((x, y), {}),
            (({"x": x, "mask": torch.ones_like(x)}, y), {}),
            (((x, torch.ones_like(x)), y), {}),
            ({"x": x, "labels": y}, {}),
            (table(), {"forward": by_hand}),
        )
    ]
    assert len({mask.digest() for mask in masks}) == 1


def scale_has_no_effect(loss, **more):
    """Return whether a smaller last layer gives the same ticket, because the logits are rescaled."""
    masks = []
    for scale in (1.0, 1e-3):
        model = Masked()
        with torch.no_grad():
            model.b.weight *= scale
            model.b.bias *= scale
        found = find_ticket(model, some_batches(), 0.5, loss=loss, epochs=4, batch=16, lr=0.1, gain="none", **more)
        masks.append(found.mask)
    agreement = sum(int((masks[0][n] == masks[1][n]).sum()) for n in masks[0]) / masks[0].total
    return agreement > 0.98


@pytest.mark.parametrize(
    ("loss", "rescaled"),
    [
        (F.cross_entropy, True),
        (nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 1.0])), True),
        (lambda out, y: F.cross_entropy(out["logits"], y), True),
        (lambda out, y: F.mse_loss(out["logits"], F.one_hot(y, 3).float()), False),
    ],
)
def test_every_cross_entropy_gets_a_temperature(loss, rescaled):
    assert scale_has_no_effect(loss) == rescaled
    if rescaled:
        assert not scale_has_no_effect(loss, temperature=1.0)


class Regress(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.b(self.a(x).relu()).squeeze(-1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("crbg", {}),
        ("imp", {"levels": 1}),
        ("saliency", {}),
        ("saliency", {"score": "grasp"}),
        ("cts", {"search": 1, "objective": "loss"}),
    ],
)
def test_outputs_without_an_axis_of_classes(method, options):
    x, _ = some_batches()
    found = find_ticket(Regress(), (x, x[:, 0]), 0.5, method, F.mse_loss, epochs=1, batch=32, **options)
    assert found.mask.kept == 72
    assert found.report.ticket.accuracy is None
    assert found.report.ticket.loss > 0
    if method != "crbg":
        assert set(found.anatomy["objectives"]) == {"loss", "deltaloss", "grad", "gradnorm"}


def test_sequences_with_classes_on_axis_1():
    model = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 3, 1))
    x = torch.randn(64, 4, 5, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    y[:, 4] = -100
    for method, more in (("crbg", {}), ("cts", {"search": 1})):
        found = find_ticket(model, (x, y), 0.5, method, epochs=1, batch=32, **more)
        assert found.report.ticket.labels % 4 == 0, "ignored tokens do not count"
        model = copy.deepcopy(model)


@pytest.mark.parametrize("method", ["crbg", "edge_popup", "imp"])
def test_the_search_runs_in_training_mode_and_restores_every_mode(method):
    modes, masks = [], []

    class Watched(Loud):
        def forward(self, x):
            modes.append((torch.is_grad_enabled(), self.training, self.norm.training))
            return super().forward(x)

    for training in (True, False):
        torch.manual_seed(0)
        model = Watched().train(training)
        options = {"levels": 1} if method == "imp" else {}
        masks.append(find_ticket(model, some_batches(), 0.5, method, epochs=1, batch=16, **options).mask)
        assert all(m.training == training for m in model.modules())
    assert masks[0] == masks[1]
    assert modes[0] == (True, True, True)
    modes.clear()
    model = Watched()
    model.norm.eval()
    find_ticket(model, some_batches(), 0.5, epochs=1, batch=16)
    assert {norm for grad, whole, norm in modes if grad} == {False}, "batch norm that the user froze stays frozen"
    assert not model.norm.training


def test_a_shuffling_loader_neither_changes_the_result_nor_the_generator():
    """torch's loader draws its order from the global generator."""
    found = []
    for state in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
        loader = DataLoader(TensorDataset(X, Y), 16, shuffle=True)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(find_ticket(model, loader, 0.5, epochs=2))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0].mask == found[1].mask
    assert found[0].report == found[1].report
    assert all(torch.equal(t, found[1].statistics[n]) for n, t in found[0].statistics.items())


def test_a_buffer_that_counts_forward_passes_is_as_before():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            self.n += 1
            return self.inner(x)

    model = Counts()
    find_ticket(model, (X, Y), 0.5, epochs=1, batch=16)
    assert model.n == 0


@pytest.mark.parametrize("size", [5, 10, 20])
def test_statistics_are_estimated_on_enough_batches_and_examples(size, monkeypatch):
    """There are 200 examples, of which 40 are enough here; at least four batches are used."""
    monkeypatch.setattr("crbg.api.STATISTICS_BATCHES", 4)
    monkeypatch.setattr("crbg.api.STATISTICS_EXAMPLES", 40)
    seen, model = [], nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(200, 4)
    loader = [(x[i : i + size], torch.arange(size) % 3) for i in range(0, 200, size)]

    def estimate(model, inputs, multipliers):
        seen.extend(len(batch) for batch in inputs)
        return {}

    monkeypatch.setattr("crbg.measure.running_statistics", estimate)
    find_ticket(model, loader, 0.5, epochs=1)
    assert (len(seen), sum(seen)) == (max(4, 40 // size), size * max(4, 40 // size))


@pytest.mark.parametrize(("method", "options"), [("crbg", {}), ("imp", {"levels": 1})])
def test_batch_norm_that_the_user_froze_keeps_its_statistics(method, options):
    model = Loud()
    model.norm.eval()
    model.norm.running_mean.fill_(0.5)
    found = find_ticket(model, some_batches(), 0.5, method, epochs=1, batch=16, **options)
    found.apply(model)
    assert set(model.norm.running_mean.tolist()) == {0.5}
    assert int(model.norm.num_batches_tracked) == 0


def test_weights_without_gates_are_named_if_they_are_many():
    class Embedded(Masked):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)

        def forward(self, x):
            return super().forward(self.table(x).mean(1))

    x = torch.randint(0, 50, (64, 3), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"69% of the matrix weights have no gate and stay dense: table\.weight"):
        find_ticket(Embedded(), (x, x[:, 0] % 3), 0.5, epochs=1, batch=32)


def test_numbers_of_numpy_are_numbers():
    x, y = some_batches()
    one = find_ticket(Linear(), (x, y), 0.3, epochs=2, seed=3, batch=16, noise=0.5)
    other = find_ticket(
        Linear(),
        (x, y),
        np.float32(0.3),
        epochs=np.int64(2),
        seed=np.uint8(3),
        batch=np.int32(16),
        noise=np.float32(0.5),
    )
    assert one.mask == other.mask
    for name in ("epochs", "seed", "batch", "steps"):
        for value in (None, True, 1.5, -1):
            if (name, value) != ("steps", None):
                with pytest.raises(CrbgError, match=f"{name} {value} must be a whole number"):
                    find_ticket(Linear(), (x, y), 0.5, **{name: value})


def test_a_search_under_no_grad_and_in_inference_mode():
    x, y = some_batches()
    wanted, model = find_ticket(Linear(), (x, y), 0.5, epochs=1, batch=16).mask, Linear()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert find_ticket(model, (x.clone(), y.clone()), 0.5, epochs=1, batch=16).mask == wanted


def test_precision():
    with pytest.raises(CrbgError, match="precision 'fp16' is unknown"):
        find_ticket(Linear(), some_batches(), 0.5, precision="fp16")
    found = [find_ticket(Linear(), some_batches(), 0.5, epochs=1, batch=16, precision=p) for p in ("fp32", "auto")]
    assert found[0].history == found[1].history, "a model without convolutions is searched in float32"


def Linear():
    torch.manual_seed(0)
    return nn.Linear(8, 3)


def test_a_ticket_of_trained_weights_is_no_file():
    model, (x, y) = Loud(), some_batches()
    found = find_ticket(model, (x, y), 0.5, "imp", epochs=1, batch=16, levels=1)
    assert not found.statistics, "those of the training are the model's"
    with pytest.raises(CrbgError, match="save the model's state_dict"):
        found.ticket()


def test_a_ticket_that_is_applied_twice_is_recognised():
    model = tiny()
    found = find_ticket(model, (X, Y), 0.5, epochs=1, batch=16)
    found.apply(model)
    with pytest.raises(CrbgError, match="all weights that the ticket drops are zero"):
        found.apply(model)
    with pytest.raises(CrbgError, match="expected the model, not str"):
        found.apply("model")


def test_an_error_in_a_later_batch_names_the_batch():
    batches = [(X[:16], Y[:16]), (X[16:32], Y[16:32]), (X[32:48, :, :5], Y[32:48])]
    with pytest.raises(RuntimeError) as caught:
        find_ticket(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), batches, 0.5, epochs=2, validation=None)
    assert caught.value.__notes__ == ["raised in batch 3 of epoch 1"]


def test_a_regression_that_learns_nothing_gives_a_warning():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.warns(UserWarning, match=r"the ticket's loss of .* is not clearly below that of"):
        find_ticket(model, (X, 1e6 * Y[:, None].float()), 0.5, loss=F.mse_loss, epochs=1, batch=16)


def test_units_are_counted_in_the_summary():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 3))
    found = find_ticket(model, (X, Y), 0.5, granularity="stream", epochs=1, batch=16)
    assert str(found).startswith("10 of 20 units kept: density 0.5; ")


@pytest.mark.parametrize("layout", ["to_sparse_csr", "to_sparse_coo"])
def test_inputs_can_be_sparse(layout):
    torch.manual_seed(0)
    x, y = torch.rand(60, 8), torch.randint(2, (60,))
    x = getattr(x * (x > 0.5), layout)()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    found = find_ticket(model, [(x, y)], 0.5, epochs=2, validation=[(x, y)])
    assert found.mask.density == pytest.approx(0.5, abs=0.02)
    nan = x.to_dense()
    nan[3, 3] = float("nan")
    with pytest.raises(CrbgError, match="contain NaN"):
        find_ticket(model, [(getattr(nan, layout)(), y)], 0.5, epochs=2, validation=[(x, y)])


def with_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_batch_norm_in_bfloat16():
    model = with_norm().bfloat16()
    found = find_ticket(model, (X.bfloat16(), Y), 0.5, epochs=2)
    assert {t.dtype for n, t in found.statistics.items() if "running" in n} == {torch.bfloat16}


class WithState(nn.Module):
    """A model whose state_dict contains an object that is no tensor."""

    def __init__(self):
        super().__init__()
        self.net = with_norm()

    def forward(self, x):
        return self.net(x)

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        raise AssertionError("the library has no reason to set it")


@pytest.mark.parametrize("method", ["crbg", "imp", "saliency", "cts", "dense"])
def test_a_model_with_extra_state(method):
    model = WithState()
    found = find_ticket(model, (X, Y), 0.5, epochs=2, method=method)
    found.apply(model)


class Interrupted(nn.Module):
    """A model that raises in its forward pass number `at`."""

    def __init__(self, at=0):
        super().__init__()
        self.net, self.calls, self.at = tiny(), 0, at

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.net(x)


def test_a_failure_after_the_search_restores_changed_weights():
    whole = Interrupted()
    found = find_ticket(whole, (X, Y), 0.5, epochs=2, signed=True)
    assert found.changed
    model = Interrupted(at=whole.calls)  # the last pass measures the ticket
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.net.head.weight.grad = torch.ones_like(model.net.head.weight)
    with pytest.raises(KeyboardInterrupt):
        find_ticket(model, (X, Y), 0.5, epochs=2, signed=True)
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    assert model.net.head.weight.grad.eq(1).all()


@pytest.mark.parametrize("where", [[], lambda name, weight: weight.requires_grad])
def test_where_that_chooses_nothing_names_the_candidates(where):
    model = with_norm().requires_grad_(False)
    with pytest.raises(CrbgError, match=r"where chooses no weight; .* by default are 1\.weight, 4\.weight"):
        find_ticket(model, (X, Y), 0.5, where=where)


@pytest.mark.parametrize("method", ["crbg", "saliency", "imp"])
def test_dropout_leaves_the_random_state_of_the_caller(method):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
    before = torch.get_rng_state()
    find_ticket(model, (X, Y), 0.5, epochs=1, method=method)
    assert torch.get_rng_state().equal(before)
