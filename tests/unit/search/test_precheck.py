import pytest
import torch
from networks import randn
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from crbg import find_ticket, methods
from crbg.errors import CrbgError
from crbg.search.precheck import check_first_batch, check_model, check_validation
from crbg.training.batches import LoaderBatches
from crbg.training.forward import UserBatch, for_any_outputs

CPU = torch.device("cpu")
X, Y = randn(8, 4), torch.arange(8) % 3


def check(model, x=X, y=Y, loss=F.cross_entropy, loader=None):
    return check_first_batch(model, LoaderBatches(loader or [(x, y)], CPU), for_any_outputs(loss))


def mlp(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(), nn.Linear(5, outputs))


def test_the_check_changes_nothing():
    model = mlp().eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True)
    with torch.no_grad():
        seen = check(model, loader=loader)
    assert torch.get_rng_state().equal(state)
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    assert not any(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert model[4].weight.grad.equal(torch.ones(3, 5))
    assert seen.outputs.shape == (8, 3)
    assert not seen.outputs.requires_grad


def half(out, y):
    return F.cross_entropy(out[:4], y[:4])


@pytest.mark.parametrize(
    ("loss", "scalable"),
    [
        (F.cross_entropy, True),
        (nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.ones(3)), True),
        (lambda out, y: F.cross_entropy(out.flip(0), y.flip(0)), True),
        (half, True),
        (lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 3).float()), True),
        (lambda out, y: F.cross_entropy(out.tanh(), y), False),
        (lambda out, y: F.nll_loss(out.log_softmax(1), y), False),
        (lambda out, y: F.mse_loss(out[:, 0], y.float()), False),
    ],
)
def test_a_loss_is_scalable_if_it_is_a_cross_entropy_of_the_outputs(loss, scalable):
    assert check(mlp(), loss=loss).scalable == scalable


class Aux(nn.Module):
    """A network with a layer that it does not use, or that it uses in eval mode only."""

    def __init__(self, late=False):
        super().__init__()
        self.a, self.aux, self.b, self.late = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), late

    def forward(self, x):
        h = self.a(x)
        return self.b(self.aux(h) if self.late and not self.training else h)


def test_unused_weights_are_named_and_a_layer_that_is_skipped_at_random_is_not():
    with pytest.raises(CrbgError, match=r"does not use 'aux\.weight'; leave unused weights out with `where`"):
        check(Aux())
    check(Aux(late=True))


NAN = X.clone()
NAN[3, 1] = float("nan")


@pytest.mark.parametrize(
    ("x", "y", "loss", "words"),
    [
        (X[:, :3], Y, F.cross_entropy, r"cannot take the data, inputs \(8, 3\) float32"),
        (X.double(), Y, F.cross_entropy, r"convert the inputs with `\.to\(torch\.float32\)`"),
        ({"x": X}, Y, F.cross_entropy, "pass `forward`"),
        (UserBatch({"x": X}, lambda m, b: m(b["y"])), None, F.cross_entropy, r"batch dict\(x: .*KeyError: 'y'"),
        (X, Y + 1, F.cross_entropy, "subtract 1 from the labels"),
        (X, Y.float(), F.cross_entropy, r"cannot take outputs \(8, 3\) float32 and labels \(8,\) float32"),
        (X, Y, lambda out, y: out.mean(0), r"one number, .* it is a tensor of shape \(3,\)"),
        (X, Y, lambda out, y: 1.0, "it is a float"),
        (X, Y, lambda out, y: out.detach().mean(), "no gradient reaches"),
        (X, Y, lambda out, y: out.softmax(1).sum() * 0, "no gradient reaches"),
        (X, Y, lambda out, y: (out.mean() - 100.0).log(), "loss of the first batch is nan"),
        (NAN, Y, F.cross_entropy, "inputs of the first batch contain NaN"),
        (torch.ones(8, 4), Y, F.cross_entropy, "one and the same value"),
        (X[:1], Y[:1], F.cross_entropy, "more than 1 value per channel"),
    ],
)
def test_what_does_not_fit_is_named(x, y, loss, words):
    with pytest.raises(CrbgError, match=words):
        check(mlp(), x, y, loss)


def hits(out, y):
    assert not out.requires_grad
    return (out.argmax(1) == y).float().mean()


def test_a_metric_is_tried_in_eval_mode_before_the_search():
    model, batches = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), LoaderBatches([(X, Y)], CPU)
    check_first_batch(model, batches, F.cross_entropy, metric=lambda out, y: float(out.all()) or "dropout")
    with pytest.raises(CrbgError, match=r"metric 'metric' was called .* \(8, 3\) float32 .* returned 'none'"):
        check_first_batch(model, batches, F.cross_entropy, metric=lambda out, y: "none")


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ([(X[:, :3], Y)], r"^validation: the model cannot take the data, inputs \(8, 3\)"),
        ([(X, Y + 1)], "^validation: labels run from 1 to 3"),
        ([(NAN, Y)], "^validation: the inputs .* contain NaN"),
        ([(X, Y, Y)], "^validation: a batch must be a pair"),
        ([(X, Y[:5])], "^validation: the loss cannot take outputs"),
    ],
)
def test_validation_data_are_checked_before_the_search(validation, words):
    with pytest.raises(CrbgError, match=words):
        find_ticket(mlp(), (X, Y), 0.5, epochs=1, validation=validation)
    model = mlp()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    check_validation(model, LoaderBatches([(X, Y)], CPU), F.cross_entropy, hits)
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())


def test_a_last_layer_of_zeros_is_named():
    model = mlp()
    nn.init.zeros_(model[4].weight)
    with pytest.raises(CrbgError, match=r"all weights of 4\.weight are zero; initialise them"):
        find_ticket(model, (X, Y), 0.5, epochs=1)


def test_outputs_with_nan_are_named():
    model = mlp()
    with torch.no_grad():
        model[4].bias[0] = float("nan")
    with pytest.raises(CrbgError, match="outputs of the first batch contain NaN"):
        check(model)


def test_a_last_batch_of_one_example_is_found_before_batch_norm_meets_it():
    x, y = torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]])
    for loader in (DataLoader(TensorDataset(x, y), 4), [(x[:8], y[:8]), (x[8:], y[8:])]):
        with pytest.raises(CrbgError, match="`drop_last=True`"):
            check(mlp(), loader=loader)
        check(nn.Linear(4, 3), loader=loader)
    check(mlp(), loader=DataLoader(TensorDataset(x, y), 4, drop_last=True))


class Seven(Dataset):
    """A data set without tensors that could be read at once."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return X[i], Y[i]


@pytest.mark.parametrize("data", [(X[:7], Y[:7]), Seven()])
def test_a_batch_size_that_leaves_one_example_is_found_before_batch_norm_meets_it(data):
    with pytest.raises(CrbgError, match=r"a batch of one example, .* change `batch`"):
        find_ticket(mlp(), data, 0.5, epochs=1, batch=2, validation=None)


def test_reentrant_checkpointing_passes_the_check():
    class Recomputed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x.clone().requires_grad_(), use_reentrant=True)

    check(Recomputed(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))


def test_models_without_values_are_refused():
    with torch.device("meta"):
        meta = mlp()
    with torch.inference_mode():
        inference = nn.Linear(4, 3)
    for model, words in (
        (nn.ReLU(), "no parameters"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' has no shape yet"),
        (meta, "'0.weight' is on the meta device"),
        (inference, "'weight' was created in inference mode"),
    ):
        with pytest.raises(CrbgError, match=words):
            check_model(model)


@pytest.mark.parametrize(
    ("method", "options", "outputs", "words"),
    [
        ("cts", {}, randn(8, 1), r"shape \(8, 1\); .*: loss, deltaloss, grad, gradnorm"),
        ("cts", {"objective": "feature"}, randn(8), r"shape \(8,\)"),
        ("cts", {"objective": "loss"}, randn(8, 1), None),
        ("cts", {}, randn(8, 3), None),
        ("saliency", {"score": "synflow"}, randn(8, 3).softmax(1), "ends in a softmax"),
        ("saliency", {"score": "synflow"}, randn(8, 3).log_softmax(1), "ends in a log-softmax"),
        ("saliency", {"score": "synflow"}, randn(8, 3), None),
        ("saliency", {}, randn(8, 3).softmax(1), None),
        ("crbg", {"temperature": 0.0}, None, None),
        ("crbg", {"temperature": 2.0}, None, "`forward` returns the loss"),
        ("cts", {}, None, "at least two classes"),
    ],
)
def test_methods_that_need_other_outputs_are_refused(method, options, outputs, words):
    chosen = methods.options(method, options)
    if words is None:
        methods.check_outputs(method, chosen, outputs)
    else:
        with pytest.raises(CrbgError, match=words):
            methods.check_outputs(method, chosen, outputs)


def test_the_labels_of_all_examples_in_memory_are_checked():
    y = Y.clone().repeat(3)
    y[20] = 7
    with pytest.raises(CrbgError, match="example 20 has the label 7, but the model has outputs for 0 to 2"):
        find_ticket(mlp(), (X.repeat(3, 1), y), 0.5, epochs=1, batch=2, validation=None)
    y[20] = -100
    find_ticket(mlp(), (X.repeat(3, 1), y), 0.5, epochs=1, batch=4)


def test_a_loader_with_a_label_of_no_class_in_a_later_batch():
    with pytest.raises(CrbgError, match="a batch contains the label 3"):
        find_ticket(mlp(), [(X, Y), (X, Y + 1)], 0.5, epochs=1)


def test_a_loss_that_is_not_finite_is_explained():
    bad = X.clone()
    bad[0] = float("inf")
    with pytest.raises(CrbgError, match="epoch 1 of 1; the inputs of batch 1 contain NaN or infinity"):
        find_ticket(nn.Linear(4, 3), [(X, Y), (bad, Y)], 0.5, epochs=1)
    with pytest.raises(CrbgError, match="inputs of the first batch contain infinity"):
        find_ticket(nn.Linear(4, 3), [(bad, Y)], 0.5, epochs=1)
    calls = []

    def loss(out, y):
        calls.append(1)
        return F.cross_entropy(out, y) * (1.0 if len(calls) < 5 else float("nan"))

    with pytest.raises(CrbgError, match=r"epoch . of 9; all inputs are finite; reduce the learning rate"):
        find_ticket(nn.Linear(4, 3), [(X, Y)], 0.5, epochs=9, loss=loss)


def test_batches_of_one_example_in_memory_are_found_before_batch_norm_meets_them():
    with pytest.raises(CrbgError, match="batches of at least two examples"):
        find_ticket(mlp(), (X, Y), 0.5, epochs=1, batch=1)
    with pytest.raises(CrbgError, match=r"batch of one example, .* change `batch`"):
        find_ticket(mlp(), (X[:7], Y[:7]), 0.5, epochs=1, batch=2)


def test_examples_of_different_lengths_need_padding():
    data = DataLoader([(torch.rand(2 + i), 0) for i in range(4)], 2)
    with pytest.raises(CrbgError, match=r"pad the examples .* `collate_fn`"):
        find_ticket(mlp(), data, 0.5, epochs=1)


def test_integer_labels_of_a_regression_need_conversion():
    with pytest.raises(CrbgError, match=r"needs floating-point labels; .*astype\(\"float32\"\)"):
        check(mlp(1), y=Y[:, None], loss=F.huber_loss)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(50, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.out(self.words(ids).mean(1))


def test_ids_of_tokens_are_checked_against_the_embedding():
    ids = torch.arange(24).reshape(8, 3)
    with pytest.raises(CrbgError, match=r"the inputs contain 59, but an embedding has 50 rows, for 0 to 49$"):
        check(Words(), ids + 36)
    with pytest.raises(CrbgError, match=r"; convert the ids of tokens with `\.long\(\)`$"):
        check(Words(), ids.float())


def test_a_forward_that_raises_is_named():
    batch = UserBatch({"x": X}, lambda model, b: (model(b["tokens"]), Y))
    with pytest.raises(CrbgError, match=r"^`forward` raised for the batch .*KeyError: 'tokens'"):
        check(mlp(), batch, None)
