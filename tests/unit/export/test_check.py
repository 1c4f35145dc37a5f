import dataclasses

import pytest
import torch
from torch import nn

from crbg import Mask, Ticket
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.export.check import LIMIT, Examples, compare, predictions

TICKET = Ticket(Mask({"w": torch.ones(1, dtype=torch.bool)}), 0, "uniform", 1.0, "lenet-4", (1, 28, 28), 10, "")


def test_examples_are_the_first_validation_images():
    examples, digits = Examples.load("digits", TICKET), load("digits")
    assert examples.name == "digits, validation"
    count = min(LIMIT, len(digits.validation))
    assert torch.equal(examples.inputs, digits.validation.inputs(slice(count)))
    assert torch.equal(examples.labels, digits.validation.y[:count])


def test_images_are_enlarged_to_the_size_of_the_network():
    examples = Examples.load("digits", dataclasses.replace(TICKET, in_shape=(1, 32, 32)))
    assert examples.inputs.shape[1:] == (1, 32, 32)
    assert examples.name == "digits, validation, resized to 32 x 32"


@pytest.mark.parametrize("other", [{"in_shape": (3, 28, 28)}, {"in_shape": (1, 28, 4)}, {"classes": 5}])
def test_data_of_another_network_are_refused(other):
    with pytest.raises(CrbgError, match="digits has 10 classes and inputs of shape"):
        Examples.load("digits", dataclasses.replace(TICKET, **other))


def test_networks_outside_the_registry_are_refused():
    with pytest.raises(CrbgError, match="outside the registry"):
        Examples.load("digits", dataclasses.replace(TICKET, model_name=""))


def test_predictions_are_those_of_the_network_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9))
    x = torch.rand(7, 1, 2, 2)
    assert torch.allclose(predictions(model, x, batch=3), model[1](x.flatten(1)))
    assert model.training


def test_equal_predictions_are_counted_and_others_are_refused():
    examples = Examples("noise", torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [5.0, 1.0]])
    found = compare(examples, logits, logits + torch.tensor([0.0, 0.25]))
    assert found == {
        "data": "noise",
        "examples": 4,
        "equal_predictions": 4,
        "largest_difference": 0.25,
        "accuracy": 75.0,
        "accuracy_exported": 75.0,
    }
    with pytest.raises(CrbgError, match="only 3 of 4 predictions on noise equal those of the ticket's network"):
        compare(examples, logits, logits * torch.tensor([[1.0], [-1.0], [1.0], [1.0]]))


def test_characters_may_differ_where_two_outputs_are_equal_up_to_rounding():
    expected = torch.tensor([[[3.0, 1.0], [3.0 - 1e-6, 0.0]]])  # two classes at two positions
    found = torch.tensor([[[3.0 - 2e-6, 1.0], [3.0 - 1e-6, 0.0]]])
    text = Examples("text", torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64))
    assert compare(text, expected, found)["equal_predictions"] == 2
    with pytest.raises(CrbgError, match="only 1 of 2 predictions on text"):
        compare(text, expected, found.flip(1))
