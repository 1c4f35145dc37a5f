from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crbg.errors import CrbgError
from crbg.training.forward import (
    OWN_LOSS,
    UserBatch,
    batch_size,
    for_any_outputs,
    logits,
    outputs_and_labels,
    with_logits,
)


class Sum(nn.Module):
    """A layer with two inputs, the second of which is scaled."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, a, b=0.0):
        return a + self.scale * b


A, B, Y = torch.ones(2), torch.full((2,), 3.0), torch.zeros(2)


@pytest.mark.parametrize("x", [(A, B), [A, B], {"a": A, "b": B}, {"b": B, "a": A}])
def test_structured_inputs_are_arguments(x):
    model = Sum()
    out, y = outputs_and_labels(model, x, Y)
    assert out.tolist() == [31.0, 31.0]
    assert y is Y
    out, _ = outputs_and_labels(model, x, Y, {"scale": torch.tensor(100.0)})
    assert out.tolist() == [301.0, 301.0]
    assert float(model.scale) == 10.0


def test_the_users_function_sees_replaced_tensors_too():
    model = Sum()
    batch = UserBatch({"p": A, "q": B}, lambda m, b: (m(b["p"], b["q"]), b["q"]))
    assert outputs_and_labels(model, batch, None)[0].tolist() == [31.0, 31.0]
    out, labels = outputs_and_labels(model, batch, None, {"scale": torch.tensor(0.0)})
    assert out.tolist() == [1.0, 1.0]
    assert labels is B


def test_the_users_function_may_return_the_loss():
    out, labels = outputs_and_labels(Sum(), UserBatch(A, lambda m, x: m(x).sum()[None]), None)
    assert labels is OWN_LOSS
    assert float(for_any_outputs(F.cross_entropy)(out, labels)) == 2.0
    with pytest.raises(CrbgError, match=r"returned \(2,\)"):
        outputs_and_labels(Sum(), UserBatch(A, lambda m, x: m(x)), None)


class Outputs(OrderedDict):
    logits = property(lambda self: self["logits"])


@pytest.mark.parametrize(
    ("out", "found"),
    [
        (A, True),
        (Outputs(logits=A, hidden=B), True),
        ({"scores": A, "ids": torch.ones(2, dtype=torch.long)}, True),
        (SimpleNamespace(logits=A, hidden=B), True),
        ([A], True),
        ((A, B), False),
        ({"text": "none"}, False),
    ],
)
def test_logits_are_found_in_outputs_of_any_kind(out, found):
    assert (logits(out) is A) == found
    if found:
        assert logits(with_logits(lambda t: 3 * t, out)).tolist() == [3.0, 3.0]
        assert A.tolist() == [1.0, 1.0]
    else:
        assert logits(out) is None
        with pytest.raises(CrbgError, match="exactly one floating-point tensor"):
            with_logits(lambda t: 3 * t, out)


def test_other_tensors_of_the_outputs_keep_their_values():
    changed = with_logits(lambda t: 3 * t, Outputs(logits=A, hidden=B))
    assert type(changed) is Outputs
    assert changed["hidden"] is B


def test_losses_of_torch_take_output_objects_and_other_losses_take_them_whole():
    scores, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    wanted = F.cross_entropy(scores, labels)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss()):
        assert for_any_outputs(loss)({"logits": scores}, labels) == wanted
        with pytest.raises(CrbgError, match=r"tuple\(\(1, 2\) float32, \(2,\) float32\)"):
            for_any_outputs(loss)((scores, A), labels)
    assert for_any_outputs(lambda out, y: F.cross_entropy(out[0], y))((scores, A), labels) == wanted


def test_the_size_of_a_batch():
    assert batch_size(torch.ones(5, 2), torch.ones(3)) == 3
    assert batch_size({"x": torch.ones(5, 2)}, None) == 5
    assert batch_size(UserBatch([torch.tensor(1.0), torch.ones(4)], len), None) == 4
    assert batch_size("text", None) == 1


@pytest.mark.parametrize("own", [False, True], ids=["plain", "user's forward"])
def test_replaced_tensors_of_a_module_with_two_names_are_restored(own):
    shared = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    model, x = nn.Sequential(shared, shared, tied), torch.ones(2, 3)
    before = shared.weight.detach().clone()
    batch = UserBatch(x, lambda m, b: (m(b), None)) if own else x
    out, _ = outputs_and_labels(model, batch, None, {"0.weight": torch.zeros(3, 3)})
    assert torch.equal(shared.weight, before)
    assert torch.equal(out, tied.bias.expand(2, 3)), "the replacement is used in all layers"
