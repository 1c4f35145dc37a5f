import numpy as np
import pytest
import torch
from networks import randn

from crbg.errors import CrbgError
from crbg.measure.metric import score
from crbg.training.forward import OWN_LOSS

OUT, Y = randn(8, 3), torch.arange(8) % 3


def bad(out, y):
    raise ValueError("Found array with dim 2")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (bad, r"metric 'bad' .* outputs \(8, 3\) float32 and labels \(8,\) int64, and raised ValueError: Found array"),
        (lambda out, y: "0.5", "returned '0.5'; it must return one number"),
        (lambda out, y: {"f1": 0.5}, r"returned dict\(f1: float\)"),
        (lambda out, y: (out.argmax(1) == y).float(), r"returned \(8,\) float32"),
        (lambda out, y: None, "returned NoneType"),
    ],
)
def test_a_metric_that_gives_no_number_is_named(metric, words):
    with pytest.raises(CrbgError, match=words):
        score(metric, OUT, Y)


def test_any_number_is_a_metric():
    for value in (1, 1.0, np.float32(1), torch.tensor(1), torch.ones(1), True):
        assert score(lambda out, y, value=value: value, OUT, Y) == 1.0
    with pytest.raises(CrbgError, match=r"returns \(outputs, labels\)"):
        score(bad, OUT, OWN_LOSS)
