import math

import pytest
import torch

from crbg.measure.calibration import calibration_error, fitted_temperature


def logits_of(confidences):
    """Return logits of two classes; the first class has the given probabilities."""
    p = torch.tensor(confidences, dtype=torch.double)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_the_error_is_the_mean_gap_between_confidence_and_accuracy():
    logits = logits_of([0.9] * 10 + [0.6] * 10)
    labels = torch.tensor([0] * 9 + [1] + [0] * 2 + [1] * 8)  # 90 % and 20 % right
    assert calibration_error(logits, labels) == pytest.approx(100 * (0.5 * 0.0 + 0.5 * 0.4))


def test_gaps_within_an_interval_cancel_but_not_between_intervals():
    labels = torch.tensor([0, 1])
    assert calibration_error(logits_of([0.75, 0.75]), labels, bins=2) == pytest.approx(25)
    assert calibration_error(logits_of([0.6, 0.9]), labels, bins=2) == pytest.approx(25)
    assert calibration_error(logits_of([0.6, 0.9]), labels, bins=15) == pytest.approx(65)


@pytest.mark.parametrize("factor", [0.02, 1.0, 50.0])
def test_the_fitted_temperature_undoes_a_factor_on_calibrated_logits(factor):
    torch.manual_seed(0)
    logits = torch.randn(20000, 5)
    labels = torch.distributions.Categorical(logits=logits).sample()
    t = fitted_temperature(factor * logits, labels)
    assert t == pytest.approx(factor, rel=0.05)
    assert calibration_error(factor * logits / t, labels) < 1.5


def test_perfect_predictions_have_a_tiny_temperature():
    assert fitted_temperature(logits_of([0.9]), torch.tensor([0])) < 0.1
    assert math.isfinite(fitted_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1])))
