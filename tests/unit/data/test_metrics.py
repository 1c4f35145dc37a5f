"""Metrics: names, units and directions."""

import subprocess
import sys

import pytest

from crbg.data.datasets import DATA
from crbg.data.metrics import ACCURACY, BITS, METRICS, MSE, Metric


def test_metrics_are_found_by_their_keys():
    assert {key: m.key for key, m in METRICS.items()} == {key: key for key in METRICS}
    assert {ACCURACY, BITS, MSE} == set(METRICS.values())
    assert all(entry.metric is METRICS[entry.metric.key] for entry in DATA.values())


def test_each_kind_of_data_has_its_metric():
    expected = {"images": ACCURACY, "graph": ACCURACY, "text": BITS, "series": MSE, "teacher": MSE}
    expected |= {"labelled_series": ACCURACY}
    assert all(entry.metric is expected[entry.loader or entry.kind] for entry in DATA.values())


@pytest.mark.parametrize(("metric", "best"), [(ACCURACY, 90.0), (BITS, 2.0), (MSE, 2.0)])
def test_the_better_value_is_the_larger_accuracy_and_the_smaller_error(metric, best):
    assert max((2.0, 50.0, 90.0), key=metric.better) == best


def test_labels_have_the_unit_in_parentheses():
    assert ACCURACY.label == "accuracy (%)"
    assert MSE.label == "mean squared error"


def test_values_are_formatted_with_their_digits_and_unit():
    assert ACCURACY.text(97.654) == "97.65 %"
    assert MSE.text(0.25) == "0.2500"
    assert Metric("key", "title", " s", digits=0).text(3.4) == "3 s"


def test_metrics_need_no_torch():
    code = "import sys, crbg.data.metrics, crbg.data.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
