"""The density controller reaches any target density to within 2 % (relative), measured with binary gates."""

import pytest
import torch

from crbg import methods, models
from crbg.data.loader import BatchLoader
from crbg.measure.accuracy import accuracy
from crbg.models import initial_weights


@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02])
def test_a_search_on_lenet_lands_on_its_density(digits, density, noise):
    model = models.build("lenet-300-100", digits.in_shape, digits.classes)
    initial_weights.initialise(model, "uniform", 0.22, 0)
    task = methods.SearchTask(BatchLoader(digits.train, 32, 0), density, 30, 0, torch.nn.functional.cross_entropy)
    found = methods.get("crbg").find(model, task, methods.options("crbg", {"noise": noise, "lr": 0.03}))
    natural = sum(int((s > 0.5).sum()) for s in found.scores.values())
    k = round(density * found.mask.total)
    assert abs(natural - k) <= 0.02 * k
    assert found.exact.kept == k
    assert found.mask.kept == natural
    assert accuracy(model, digits.validation.batches(), found.mask) > 85
