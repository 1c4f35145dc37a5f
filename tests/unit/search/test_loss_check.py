import pytest
import torch
from networks import randn
from torch import nn
from torch.nn import functional as F

from crbg.errors import CrbgError
from crbg.search.loss_check import explained, loss_of
from crbg.training.batches import LoaderBatches
from crbg.training.clock import Collapse
from crbg.training.forward import for_any_outputs

ONE, THREE, CLASSES = randn(8, 1), randn(8, 3), torch.arange(8) % 3
BINARY = CLASSES.clamp(max=1)
REGRESSION = "floating-point numbers.*loss=nn.functional.mse_loss` for regression or .*binary_cross_entropy_with_logits"


@pytest.mark.parametrize(
    ("out", "labels", "words"),
    [
        (ONE[:, 0], ONE[:, 0], REGRESSION),
        (ONE, ONE, "one output for each class, but there is one output; .*mse_loss"),
        (ONE, BINARY, "there is one output; .*binary_cross_entropy_with_logits"),
        (ONE, BINARY.float(), "there is one output; .*binary_cross_entropy_with_logits"),
        (THREE, torch.ones(8, 3), REGRESSION),
        (THREE, CLASSES.float(), r"floating-point numbers.*`labels\.long\(\)`"),
        (THREE, CLASSES[:, None], r"squeeze\(1\)`, or `df\[\"label\"\]`"),
    ],
)
@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_labels_that_no_cross_entropy_takes(loss, out, labels, words):
    with pytest.raises(CrbgError, match=words):
        loss_of(for_any_outputs(loss), out, labels)


@pytest.mark.parametrize(
    ("loss", "out", "labels", "words"),
    [
        (lambda out, y: F.mse_loss(y, out), ONE, ONE[:, 0], r"\(8, 8\).*`\.unsqueeze\(1\)`"),
        (F.mse_loss, ONE, ONE[:, 0], r"broadcasts the shapes \(8, 1\) and \(8,\) to \(8, 8\).*`\.unsqueeze\(1\)`"),
        (nn.L1Loss(), ONE[:, 0], ONE, r"shapes \(8,\) and \(8, 1\) to \(8, 8\).*`\.squeeze\(1\)` to the labels"),
        (lambda out, y: F.mse_loss(out["a"], target=y), {"a": ONE, "b": ONE}, ONE[:, 0], "broadcasts"),
        (lambda out, y: ((out - y) ** 2).mean(), ONE, ONE[:, 0], "broadcasts"),
        (F.binary_cross_entropy_with_logits, ONE, BINARY.float(), r"use `labels\.unsqueeze\(1\)`$"),
        (F.binary_cross_entropy_with_logits, ONE, BINARY, r"`labels\.unsqueeze\(1\)\.float\(\)`$"),
        (F.binary_cross_entropy_with_logits, ONE[:, 0], BINARY, r"needs floating-point labels; .*`\.float\(\)`"),
        (F.binary_cross_entropy_with_logits, ONE[:, 0], BINARY.bool(), r"needs floating-point labels"),
        (lambda y, out: F.cross_entropy(out, y), THREE, CLASSES, "takes the labels first"),
        (lambda out, y: F.cross_entropy(out, y), THREE, CLASSES.double(), r"`labels\.long\(\)`"),
    ],
)
def test_the_error_names_the_labels_that_the_loss_would_take(loss, out, labels, words):
    with pytest.raises(CrbgError, match=words):
        loss_of(for_any_outputs(loss), out, labels)


@pytest.mark.parametrize(
    ("loss", "out", "labels"),
    [
        (F.cross_entropy, THREE, THREE.softmax(1)),
        (F.cross_entropy, randn(8, 3, 5), randn(8, 3, 5).softmax(1)),
        (F.mse_loss, ONE, ONE[:1, 0]),
        (F.mse_loss, THREE, THREE[0]),
        (lambda out, y: ((out[:, 0] - y) ** 2).mean(), ONE, ONE[:, 0]),
        (lambda out, y: F.cross_entropy(out - out.mean(), y), THREE, CLASSES),
    ],
)
def test_a_loss_that_fits_is_computed(loss, out, labels):
    assert loss_of(for_any_outputs(loss), out, labels)[0] == loss(out, labels)


BAD = torch.full((8, 2), float("nan"))
MASK = torch.full((8, 2), float("-inf"))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((BAD, ONE), "the inputs of batch 1 contain NaN or infinity"),
        ((ONE, BAD), "the labels of batch 1 contain NaN or infinity"),
        (({"x": ONE, "mask": MASK}, ONE), "all inputs are finite; reduce the learning rate"),
    ],
)
def test_the_end_of_a_search_is_explained_by_its_data(batch, words):
    batches = LoaderBatches([(ONE, ONE), batch], torch.device("cpu"))
    with pytest.raises(CrbgError, match=f"^the loss is not finite; {words}"), explained(batches):
        raise Collapse("the loss is not finite")


def test_the_end_of_a_search_is_explained_without_data_that_cannot_be_read():
    class Broken(list):
        def __iter__(self):
            raise OSError

    batches = LoaderBatches(Broken([1]), torch.device("cpu"))
    with pytest.raises(CrbgError, match=r"^the loss is not finite; reduce the learning rate"), explained(batches):
        raise Collapse("the loss is not finite")
