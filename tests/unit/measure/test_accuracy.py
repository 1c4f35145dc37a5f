import pytest
import torch
from networks import random_mask
from torch import nn

from crbg import measure
from crbg.gates.attach import weights
from crbg.models.initial_weights import tensor_digest

# measures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
def test_accuracy_counts_as_a_plain_loop_does(lenet, digits, train):
    lenet.train(train)
    mask, part, hits = random_mask(lenet), digits.validation, 0
    w = [t.detach() for t in weights(lenet).values()]
    m = list(mask.values())
    for i in range(len(part)):
        h = part.inputs(slice(i, i + 1)).flatten(1)
        for j in range(3):
            h = h @ (w[j] * m[j]).T
            h = nn.functional.leaky_relu(h, 0.25) if j < 2 else h
        hits += int(h.argmax()) == int(part.y[i])
    digest = tensor_digest(lenet.state_dict())
    assert measure.accuracy(lenet, part.batches(70), mask) == pytest.approx(100 * hits / 300)
    assert lenet.training == train
    assert tensor_digest(lenet.state_dict()) == digest
    assert measure.accuracy(lenet, part.batches()) == measure.accuracy(lenet, part.batches(), ~mask | mask)


def test_accuracy_takes_real_multipliers_and_reads_without_dropout():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(0.9)).train()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    x, y = torch.tensor([[1.0, 0.6]] * 50), torch.zeros(50, dtype=torch.int64)
    assert measure.accuracy(model, [(x, y)]) == 100.0
    assert measure.accuracy(model, [(x, y)], {"0.weight": torch.tensor([[0.5, 1.0], [1.0, 1.0]])}) == 0.0
    tied = {"0.weight": torch.zeros(2, 2)}
    assert measure.accuracy(model, [(x, y)], tied) == 100.0  # a tie counts as a prediction of the first class
