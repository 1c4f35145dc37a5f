import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crbg.errors import CrbgError
from crbg.measure.loss_calls import LossCalls

SCORES, LABELS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 2, -100])


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.ones(3)),
        lambda out, y: 2 * F.cross_entropy(input=out, target=y) + out.mean(),
        lambda out, y: F.nll_loss(out.log_softmax(1), y),
    ],
)
def test_cross_entropies_are_seen_whoever_calls_them(loss):
    with LossCalls() as seen:
        value = loss(SCORES, LABELS)
    assert value == loss(SCORES, LABELS)
    (call,) = seen.calls
    assert call.classes == 3
    assert call.labels().tolist() == [0, 2]
    assert call.predictions().tolist() == [0, 1]


def test_sequences_probabilities_and_an_ignored_class():
    scores, labels = torch.randn(2, 3, 5), torch.randint(0, 3, (2, 5))
    with LossCalls() as seen:
        F.cross_entropy(scores, labels, ignore_index=1)
        F.cross_entropy(SCORES, F.one_hot(torch.tensor([0, 1, 2]), 3).float())
        F.binary_cross_entropy_with_logits(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 1.0]))
        F.mse_loss(scores, scores)
    tokens, soft, binary = seen.calls
    assert tokens.labels().equal(labels[labels != 1])
    assert tokens.predictions().equal(scores.argmax(1)[labels != 1])
    assert soft.labels().tolist() == [0, 1, 2]
    assert binary.predictions().tolist() == [0, 1]
    assert binary.labels().tolist() == [1, 1]
    assert binary.classes == 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2, 3], r"labels run from 1 to 3, but the model has outputs for 0 to 2; subtract 1"),
        ([0, 2, 5], r"from 0 to 5, .*; give the model one output for each class"),
        ([0, -1, 2], r"from -1 to 2, .*`ignore_index`"),
    ],
)
def test_labels_that_are_no_class_are_named_before_torch_fails(labels, words):
    with pytest.raises(CrbgError, match=words), LossCalls():
        F.cross_entropy(SCORES, torch.tensor(labels))


def test_ignored_labels_are_no_error():
    with LossCalls() as seen:
        F.cross_entropy(SCORES, torch.tensor([0, -1, 2]), ignore_index=-1)
        F.cross_entropy(SCORES, torch.full((3,), -100))
    assert [call.labels().tolist() for call in seen.calls] == [[0, 2], []]
