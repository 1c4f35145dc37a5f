"""Runs on graphs, text and series: metrics, schema 2, naive predictors, early stopping, verification."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from crbg import measure, methods
from crbg.data.metrics import ACCURACY, BITS, MSE
from crbg.errors import CrbgError
from crbg.experiments.record import Evaluation, Reading, Record
from crbg.experiments.spec import Spec, folder
from crbg.masks.mask import Mask
from crbg.runs.checks import same_result
from crbg.runs.execute import execute
from crbg.runs.open_test_set import evaluate
from crbg.runs.readings import constant, measured
from crbg.runs.setup import Workspace, initial_model
from crbg.storage.atomic import read_json

SERIES = Spec("toy_series", "lenet-16", "random", 0.3, init="kaiming_normal", epochs=0, batch=100)
TEXT = Spec("toy_text", "lstm-8", "random", 0.3, init="kaiming_normal", epochs=0, batch=64)
GRAPH = Spec("toy_graph", "gcn-8", "random", 0.3, init="kaiming_normal", epochs=0, batch=80)
EACH = pytest.mark.parametrize("spec", [SERIES, TEXT, GRAPH], ids=lambda s: s.data)


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path, selected=None)


@EACH
def test_a_run_is_recorded_with_the_metric_of_its_data(spec, place):
    record, metric = execute(spec, 0, place), spec.metric
    path = folder(place.results, spec, 0) / "record.json"
    body = read_json(path)
    assert body["schema"] == (1 if metric is ACCURACY else 2)
    more = {"temperature"} if metric is BITS else set()
    assert set(body["validation"]["readings"]["binary"]) == {metric.key, "density"} | more
    assert Record.from_json(body, "here") == record
    evaluation = evaluate(spec, 0, place)
    stored = read_json(path.with_name("evaluation.json"))
    assert set(stored["test"]["sanity"]) == {"shuffle", "reinit"}
    assert Evaluation.from_json(stored, "here") == evaluation
    data = place.data(spec.data)
    for part, seen in ((data.validation, record.validation), (data.test, evaluation.test)):
        assert seen.images == len(part)
        assert seen.naive == {name: pytest.approx(of(part)) for name, of in data.naive.items()}
        assert len(seen.naive) >= 2


def test_bits_and_squared_errors_are_means_over_all_labels(place):
    """The batches of the evaluation differ in size, so a mean of batch means would differ."""
    for spec, of in ((TEXT, lambda out, y: F.cross_entropy(out, y) / math.log(2)), (SERIES, F.mse_loss)):
        data = place.data(spec.data)
        model, _ = initial_model(spec, data, 0)
        part = data.validation.take(slice(50))
        x, y = part.batch(slice(None))
        expected = float(of(model(x), y).detach())
        assert measure.quality(model, part.batches(32), None, data.metric) == pytest.approx(expected, rel=1e-5)


def test_the_constant_prediction_is_chosen_on_the_training_part(place):
    series, text, graph = (place.data(s.data) for s in (SERIES, TEXT, GRAPH))
    y = series.test.y.double()
    assert constant(series, series.test) == pytest.approx(float((y - series.train.y.double().mean(0)).square().mean()))
    counts = [1 + int((text.train.y == c).sum()) for c in range(text.classes)]
    bits = [-math.log2(counts[int(c)] / sum(counts)) for c in text.test.y.flatten()]
    assert constant(text, text.test) == pytest.approx(sum(bits) / len(bits))
    assert constant(graph, graph.test) == 25.0


def test_early_stopping_keeps_the_epoch_that_is_best_on_validation(place):
    """Training on 40 windows overfits, so the best epoch is not the last."""
    options = {"lr": 0.02}
    dense = {"method": "dense", "density": None, "epochs": 40, "limit": 40, "batch": 40}
    spec = dataclasses.replace(SERIES, **dense, options=options | {"keep": "best"})
    record = execute(spec, 0, place)
    lines = (folder(place.results, spec, 0) / "history.jsonl").read_text().splitlines()
    seen = [-json.loads(line)["validation"] for line in lines]
    assert min(seen) < seen[-1]
    assert record.value() == pytest.approx(min(seen))
    last = execute(dataclasses.replace(spec, options=options), 0, place)
    assert last.value() == pytest.approx(seen[-1])
    with pytest.raises(CrbgError, match="`best`, which needs a validation part"):
        execute(dataclasses.replace(spec, fit_on="all"), 0, place)


def test_a_ticket_works_without_attention_but_not_without_a_layer(place, monkeypatch):
    """A graph attention network without attention vectors averages over all neighbours."""
    spec = Spec("toy_graph", "gat-4x2", "random", 0.5, init="kaiming_normal", epochs=0, batch=80)
    random = methods.get("random").find

    def without(names):
        def find(model, task, options):
            mask = random(model, task, options).mask
            return methods.SearchResult(Mask({n: t & (not n.endswith(names)) for n, t in mask.items()}))

        monkeypatch.setattr(methods.get("random"), "find", find)

    without(("target.weight", "source.weight"))
    record = execute(spec, 0, place)
    assert record.ok
    assert record.layers["layers.0.target.weight"].kept == 0
    without(("layers.1.project.weight",))
    record = execute(spec, 1, place)
    assert record.reason == "nothing is left of layers.1.project.weight"


@EACH
def test_a_result_that_cannot_be_repeated_is_found(spec, place):
    record = execute(spec, 0, place)
    data = place.data(spec.data)
    model, _ = initial_model(spec, data, 0)
    mask = _mask(place, spec)
    assert list(same_result(model, mask, data, data.validation, record.validation)) == []
    said = record.validation.readings["binary"]
    wrong = dataclasses.replace(said, value=said.value + 2 * data.metric.tolerance)
    other = dataclasses.replace(record.validation, readings={"binary": wrong})
    (message,) = same_result(model, mask, data, data.validation, other)
    assert data.metric.text(wrong.value) in message


def _mask(place, spec):
    from crbg.ticket import Ticket

    return Ticket.load(folder(place.results, spec, 0) / "ticket.safetensors").mask


def test_bits_are_measured_at_a_temperature_fitted_on_training_windows(place):
    """Logits that are too large give more bits; dividing them by a constant in every network removes this."""
    data = place.data("toy_text")
    model, _ = initial_model(TEXT, data, 0)
    plain = measured(model, {}, data, data.validation)
    with torch.no_grad():
        model.out.weight.mul_(50)
    large = measured(model, {}, data, data.validation)
    assert large.temperature == pytest.approx(50 * plain.temperature, rel=1e-2)
    assert large.value == pytest.approx(plain.value, abs=1e-3)
    assert measure.quality(model, data.validation.batches(), None, BITS) > plain.value + 1
    assert measured(model, {}, data, data.test).temperature == large.temperature


def test_the_multipliers_change_the_metric(place):
    data = place.data("toy_series")
    model, _ = initial_model(SERIES, data, 0)
    none = {n: torch.zeros_like(w) for n, w in model.named_parameters()}
    mean = float(data.validation.y.double().square().mean())
    assert measured(model, none, data, data.validation) == Reading(pytest.approx(mean), metric="mse")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"flip": True, "crop": 2}, "flip is for images, and toy_series has none; leave flip out; crop is for images"),
        ({"split": 1}, "split is for images"),
        ({"batch": 9999}, r"batch 9999 is larger than the \d+ training windows of toy_series"),
        ({"model": "gcn-16"}, r"gcn-16 takes graph, not series; networks for series: .*lenet"),
        ({"data": "digits", "model": "lstm-8"}, "lstm-8 takes text.*, not images"),
        (
            {"method": "crbg", "options": {"temperature": 0.0}},
            "options.temperature scales logits, and networks for toy",
        ),
    ],
)
def test_a_spec_that_does_not_fit_the_data_is_refused(spec, message):
    with pytest.raises(CrbgError, match=message):
        dataclasses.replace(SERIES, **spec)


def test_metrics_have_a_direction():
    assert ACCURACY.better(90) > ACCURACY.better(80)
    assert BITS.better(2.5) > BITS.better(2.6)
    assert MSE.better(0.1) > MSE.better(0.2)
    assert [m.text(1.23456) for m in (ACCURACY, BITS, MSE)] == ["1.23 %", "1.235 bits", "1.2346"]


def test_a_reading_without_a_known_metric_is_refused():
    with pytest.raises(CrbgError, match="here lacks 'accuracy' or 'bits_per_character' or 'mse'"):
        Reading.from_json({"perplexity": 3.0}, "here")
    assert Reading.from_json({"mse": 0.5, "density": 0.1}, "here").to_json() == {"mse": 0.5, "density": 0.1}


def test_records_of_images_keep_their_format(place):
    spec = Spec("digits", "lenet-16", "random", 0.3, epochs=0, batch=64)
    execute(spec, 0, place)
    body = read_json(Path(folder(place.results, spec, 0) / "record.json"))
    assert body["schema"] == 1
    assert "naive" not in body["validation"]
    assert set(body["validation"]["readings"]["binary"]) == {"accuracy", "density"}
