"""Pruning scores agree with finite differences or a calculation by hand; known bugs of public code are absent."""

import pytest
import torch
from torch import nn

from crbg import methods
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.gates.attach import weights
from crbg.masks.mask import Mask
from crbg.masks.select import select
from crbg.models.initial_weights import initialise
from crbg.models.registry import build
from crbg.search import saliency
from crbg.training.batches import LoaderBatches
from crbg.training.forward import UserBatch, for_any_outputs

LOSS = nn.functional.cross_entropy


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()


@pytest.fixture
def some():
    made = torch.Generator().manual_seed(1)
    x = torch.randn(12, 4, generator=made, dtype=torch.float64)
    return [(x, torch.arange(12) % 3)]


def value(model, batches, heat=1.0):
    return sum(float(LOSS(model(x) / heat, y).detach()) for x, y in batches) / len(batches)


def squared_gradient(model, batches, heat):
    """Return |g|^2 / 2, where g is the gradient of the mean loss; the tested code differentiates once more."""
    parts = [torch.autograd.grad(LOSS(model(x) / heat, y), list(model.parameters())) for x, y in batches]
    return 0.5 * sum(float((sum(gs) / len(batches)).square().sum()) for gs in zip(*parts, strict=True))


def by_differences(model, what, step=1e-4):
    """Return the derivative of `what(model)` with respect to each weight, by finite differences."""
    out = {}
    for name, w in weights(model).items():
        slope = torch.zeros_like(w)
        for i in range(w.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    w.view(-1)[i] += sign * step
                ends.append(what(model))
                with torch.no_grad():
                    w.view(-1)[i] -= sign * step
            slope.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        out[name] = slope
    return out


def test_snip_is_the_effect_of_a_gate_at_one(small, some):
    slopes = by_differences(small, lambda m: value(m, some))
    found = saliency.snip(small, weights(small), some, LOSS, 0)
    for n, w in weights(small).items():
        torch.testing.assert_close(found[n], (w * slopes[n]).abs().detach(), rtol=1e-6, atol=1e-9)


def test_grasp_is_theta_times_the_slope_of_the_squared_gradient_and_keeps_its_sign(small, some):
    """GraSP needs the product H g of Hessian and gradient, which is the gradient of |g|^2 / 2."""
    slopes = by_differences(small, lambda m: squared_gradient(m, some, saliency.TEMPERATURE))
    found = saliency.grasp(small, weights(small), some, LOSS, 0)
    for n, w in weights(small).items():
        torch.testing.assert_close(found[n], (w * slopes[n]).detach(), rtol=1e-5, atol=1e-14)
    together = torch.cat([s.flatten() for s in found.values()])
    assert (together > 0).any()
    assert (together < 0).any()
    assert all(
        torch.equal(s, found[n].abs()) for n, s in saliency.grasp_abs(small, weights(small), some, LOSS, 0).items()
    )


def test_grasp_in_rounds_forgets_what_was_dropped(small, some):
    mask = {n: torch.rand(w.shape, generator=torch.Generator().manual_seed(2)) < 0.5 for n, w in weights(small).items()}
    with torch.no_grad():
        for n, w in weights(small).items():
            w.mul_(mask[n])

    def squared(m):
        parts = [torch.autograd.grad(LOSS(m(x) / saliency.TEMPERATURE, y), list(m.parameters())) for x, y in some]
        return 0.5 * sum(float((g * k).square().sum()) for g, k in zip(parts[0], mask.values(), strict=True))

    slopes, found = by_differences(small, squared), saliency.grasp(small, weights(small), some, LOSS, 0)
    for n, w in weights(small).items():
        torch.testing.assert_close(found[n], (w * slopes[n]).detach(), rtol=1e-5, atol=1e-14)


def test_ranks_break_ties_by_position_as_the_selection_does():
    full = {"a": torch.ones(6), "b": torch.ones(4)}
    ranks = saliency.ranked_after(
        {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in full.items()}, full, Mask.full(full)
    )
    assert select(ranks, 7) == select(full, 7)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_parts_of_a_batch_are_averaged(small, some, name):
    (x, y), cut = some[0], 5
    whole = saliency.SCORES[name](small, weights(small), some, LOSS, 0)
    parts = saliency.SCORES[name](small, weights(small), [(x[:cut], y[:cut]), (x[cut:], y[cut:])], LOSS, 0)
    for n in whole:
        torch.testing.assert_close(parts[n], whole[n], rtol=1e-9, atol=1e-14)


def test_synflow_by_hand_and_without_touching_the_network(some):
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        net[2].weight.copy_(torch.tensor([[-5.0, 6.0]]))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    found = saliency.synflow(net, weights(net), [(torch.zeros(1, 2), torch.zeros(1))], LOSS, 0)
    # Each score is the share of R = 5 (1 + 2) + 6 (3 + 4) that flows through its weight.
    assert found["0.weight"].tolist() == [[5.0, 10.0], [18.0, 24.0]]
    assert found["2.weight"].tolist() == [[15.0, 42.0]]
    assert all(t.equal(before[n]) for n, t in net.state_dict().items())


def test_synflow_of_a_deep_network_does_not_overflow():
    net = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(24)])
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(100.0)
    found = saliency.synflow(net, weights(net), [(torch.ones(1, 8), torch.zeros(1))], LOSS, 0)
    assert all(bool(s.isfinite().all()) and float(s.min()) > 1e60 for s in found.values())


def test_synflow_reads_batch_norm_in_eval_mode_and_as_absolute_values():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, eps=0.0))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        net[1].weight.copy_(torch.tensor([-2.0, 1.0]))
        net[1].running_mean.copy_(torch.tensor([-3.0, 5.0]))
        net[1].running_var.copy_(torch.tensor([4.0, 1.0]))
    found = saliency.synflow(net, weights(net), [(torch.zeros(1, 2), torch.zeros(1))], LOSS, 0)
    # Each unit has the slope |gain| / sqrt(variance), independent of the batch: here 2 / 2 and 1.
    assert found["0.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert net[1].running_mean.tolist() == [-3.0, 5.0]


def test_random_scores_follow_the_seed_alone(small, some):
    a, b, c = (saliency.random(small, weights(small), some, LOSS, seed)["0.weight"] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    with torch.no_grad():
        small[0].weight.add_(1.0)
    assert torch.equal(a, saliency.random(small, weights(small), some, LOSS, 0)["0.weight"])


def test_rounds_keep_exact_counts_within_what_was_kept_before(small, some, monkeypatch):
    seen = []
    real = saliency.SCORES["snip"]

    def watched(model, given, *rest):
        seen.append({n: (w != 0) for n, w in given.items()})
        return real(model, given, *rest)

    monkeypatch.setitem(saliency.SCORES, "snip", watched)
    ranks = saliency.prune(small, "snip", 0.2, 4, some, LOSS, 0)
    total = Mask.full(ranks).total
    mask = select(ranks, round(0.2 * total))
    assert mask.kept == round(0.2 * total)
    assert [sum(int(m.sum()) for m in kept.values()) for kept in seen] == [
        round(total * 0.2 ** (t / 4)) for t in range(4)
    ]
    for earlier, later in zip(seen, [*seen[1:], dict(mask)], strict=True):
        assert all(bool((later[n] <= earlier[n]).all()) for n in earlier)
        # Ranks follow the order in which the rounds dropped the weights.
        count = sum(int(m.sum()) for m in later.values())
        assert select(ranks, count) == Mask({n: m.bool() for n, m in later.items()})


def test_rounds_of_synflow_save_a_layer_that_one_round_would_close():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(40, 40, bias=False), nn.ReLU(), nn.Linear(40, 40, bias=False), nn.ReLU(), nn.Linear(40, 2, bias=False)
    )
    with torch.no_grad():
        net[2].weight.mul_(0.2)
    batch = [(torch.ones(1, 40), torch.zeros(1))]
    total = Mask.full(weights(net)).total
    once, often = (
        select(saliency.prune(net, "synflow", 0.01, rounds, batch, LOSS, 0), round(0.01 * total)) for rounds in (1, 100)
    )
    assert min(once.layer_kept().values()) == 0
    assert min(often.layer_kept().values()) > 0
    assert once.kept == often.kept == round(0.01 * once.total)


def test_a_balanced_batch_takes_the_first_of_each_class(digits):
    model = build("lenet-20", digits.in_shape, digits.classes)
    feed = BatchLoader(digits.train, 64, 3)
    parts = saliency.balanced_batch(model, feed, 7, size=32)
    assert [len(y) for _, y in parts] == [32, 32, 6]
    x, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    assert y.bincount().tolist() == [7] * 10
    every = [(a, b) for xs, ys in feed.epoch(0) for a, b in zip(xs, ys, strict=True)]
    for label in range(10):
        wanted = torch.stack([a for a, b in every if b == label][:7])
        assert torch.equal(x[y == label], wanted)


def test_a_class_with_few_examples_gives_what_it_has(digits):
    model = build("lenet-20", digits.in_shape, digits.classes)
    few = digits.train.take(
        torch.cat([(digits.train.y == 4).nonzero().flatten()[:3], (digits.train.y != 4).nonzero().flatten()])
    )
    parts = saliency.balanced_batch(model, BatchLoader(few, len(few), 0), 5)
    assert torch.cat([y for _, y in parts]).bincount().tolist() == [5, 5, 5, 5, 3, 5, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "snipe"}, "score = 'snipe' is unknown.*snip"),
        ({"rounds": -1}, "rounds = -1"),
        ({"per_class": 0}, "per_class = 0"),
    ],
)
def test_nonsense_is_refused(digits, options, message):
    model = build("lenet-20", digits.in_shape, digits.classes)
    initialise(model, "kaiming_normal", 1.0, 0)
    task = methods.SearchTask(BatchLoader(digits.train, 64, 0), 0.5, 2, 0, LOSS)
    with pytest.raises(CrbgError, match=message):
        methods.get("saliency").find(model, task, methods.options("saliency", options))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, tokens, scale=1.0):
        return {"logits": self.out(self.table(tokens).mean(1)) * scale}


def test_synflow_needs_inputs_that_can_be_ones_and_outputs_that_can_be_summed():
    model, tokens = Embedded(), torch.zeros(2, 3, dtype=torch.long)
    raw = weights(model)
    with pytest.raises(CrbgError, match=r"inputs, but they are \(2, 3\) int64; choose another score: magnitude"):
        saliency.synflow(model, raw, [(tokens, None)], None, 0)
    batch = UserBatch((tokens, torch.rand(2, 1)), lambda m, b: (m(*b), None))
    scores = saliency.synflow(model, raw, [(batch, None)], None, 0)
    # one example of ones would count each weight once; a batch in the user's format keeps both examples
    wanted = 2 * raw["out.weight"].abs() * model.table.weight[0].abs()
    torch.testing.assert_close(scores["out.weight"].float(), wanted)
    with pytest.raises(CrbgError, match="let `forward` return"):
        saliency.synflow(model, raw, [(UserBatch(tokens, lambda m, b: m(b)["logits"].sum()), None)], None, 0)


def test_snip_and_grasp_of_output_objects_are_those_of_their_logits():
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.arange(6) % 3
    pairs = [(x, y)], [(UserBatch(x, lambda m, b: ({"logits": m(b)}, y)), None)]
    for score in (saliency.snip, saliency.grasp):
        plain, wrapped = (
            score(layer, weights(layer), pair, for_any_outputs(nn.functional.cross_entropy), 0) for pair in pairs
        )
        assert plain["weight"].equal(wrapped["weight"])


def test_a_batch_that_cannot_be_balanced_is_taken_whole():
    tokens, labels = torch.zeros(6, 3, dtype=torch.long), torch.arange(6) % 3
    loader = [({"tokens": tokens}, labels)]
    assert saliency.balanced_batch(Embedded(), LoaderBatches(loader, torch.device("cpu")), 1)[0][1].equal(labels)
    sums = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    counts = LoaderBatches([(torch.rand(6, 3), labels)], torch.device("cpu"))
    assert saliency.balanced_batch(sums, counts, 1)[0][1].equal(labels)
