import copy
import math
from types import SimpleNamespace

import pytest
import torch
from networks import randn
from torch import nn
from torch.nn import functional as F

from crbg import find_ticket
from crbg.masks.mask import Mask
from crbg.measure.ticket_report import Measured, TicketReport, advice, gate_summary, measure_network
from crbg.methods.contract import SearchResult

X = randn(200, 8)
Y = X[:, :3].argmax(1)


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, outputs))


def test_measurements_by_hand():
    model = nn.Sequential(network(), nn.Dropout(0.9))
    batches = [(X[:150], Y[:150]), (X[150:], Y[150:])]
    found = measure_network(model, batches, F.cross_entropy, lambda out, y: out.mean())
    out = model.eval()(X)
    assert found.loss == pytest.approx(float(F.cross_entropy(out, Y)), rel=1e-5)
    assert found.metric == pytest.approx(float(out.mean().detach()), rel=1e-5)
    assert found.accuracy == pytest.approx(100 * float((out.argmax(1) == Y).float().mean()))
    assert found.most_frequent == pytest.approx(100 * float(Y.bincount().max()) / 200)
    assert (found.examples, found.labels) == (200, 200)


def test_a_measurement_that_raises_is_left_out():
    def wrong(out, y):
        raise RuntimeError("only in training")

    with pytest.warns(UserWarning, match="the metric 'wrong' .* only in training"):
        found = measure_network(network(), [(X, Y)], wrong, wrong)
    assert found == Measured(examples=200)
    with pytest.warns(UserWarning, match="batch 1 of the measurement cannot be computed"):
        assert measure_network(network(), [(X, Y), (X[:, :3], Y)], F.cross_entropy) == Measured()
    regression = measure_network(network(1), [(X, X[:, :1])], F.mse_loss)
    assert regression.accuracy is None
    assert regression.loss > 0


def result(soft=None, exact=True):
    scores = {"a": torch.tensor([0.9, 0.6, 0.2, 0.0])}
    mask = Mask({"a": torch.tensor([True, False, False, False])})
    return SearchResult(mask, mask if exact else None, scores, soft or {})


def test_the_summary_says_whether_the_search_reached_the_density():
    soft = {"a": torch.tensor([1.0, 0.6, 0.0, 0.0])}
    cut = gate_summary(result(soft), 0.25)
    assert cut == {"layers": {"a": 0.25}, "decided": 0.75, "reached": False, "natural": 0.5}
    reached = result()
    reached.mask = Mask({"a": torch.tensor([True, True, False, False])})
    assert gate_summary(reached, 0.5)["reached"] is True
    assert gate_summary(result(exact=False), 0.25) == {"layers": {"a": 0.25}, "decided": None}


def report(**changed):
    values = {"data": "held-out", "ticket": Measured(2.0, 34.0, None, 33.0, 100, 100), "initial": Measured(2.2, 30.0)}
    return TicketReport(**values | changed)


@pytest.mark.parametrize(
    ("changed", "history", "epochs", "words"),
    [
        ({"reached": False, "natural": 0.6}, [], 100, "ended at density 0.6 and was cut to 0.25. Next: raise `epochs`"),
        ({"reached": False, "natural": 0.6}, [], 10, "100 steps are few"),
        ({"ticket": Measured(2.0, 34.0, None, 100.0, 100, 100)}, [], 10, "all labels of the held-out examples are one"),
        ({"reached": False, "natural": 0.26}, [{"loss": 2.0}, {"loss": 2.0}], 100, "the loss did not fall"),
        ({}, [{"loss": 2.0}, {"loss": 1.99}], 100, "the loss did not fall"),
        ({}, [{"loss": 2.0}, {"loss": 1.0}], 100, "does not generalise"),
        ({"ticket": Measured(2.0, 45.0, None, 33.0, 100, 100)}, [], 10, None),
        ({"ticket": Measured(2.0)}, [], 10, None),
    ],
)
def test_a_ticket_at_chance_is_a_warning_with_a_cause(changed, history, epochs, words):
    found = result()
    found.history, found.report = history, report(**changed)
    text = advice(found, SimpleNamespace(epochs=epochs, batches=[None] * 10))
    assert (
        (text is None)
        if words is None
        else (words in text and "34.0 %" in text and f"{found.report.ticket.most_frequent:.1f} %" in text)
    )


def test_the_printed_report():
    text = str(report(layers={"a": 0.25, "b": 0.5}, decided=0.9, reached=True, natural=0.251, metric="f1"))
    assert "on 100 examples (held-out)" in text
    assert "accuracy 34.0 %; 30.0 % of the dense initial network and 33.0 % of the most frequent class" in text
    assert "90.0% ended at exactly 0 or 1" in text
    assert "density: the search ended with 0.251 of the gates open; this is the mask" in text
    assert "a 0.25, b 0.5" in text
    assert "f1" not in text, "the metric could not be taken"
    assert "density of 20 tensors: from a0 0 to a19 0.19" in str(report(layers={f"a{i}": i / 100 for i in range(20)}))


def test_find_ticket_reports_on_examples_that_the_search_has_not_seen():
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x):
            if self.training:
                seen.extend(map(tuple, x.tolist()))
            return super().forward(x)

    torch.manual_seed(0)
    model = Watched(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def hits(out, y):
        return (out.argmax(1) == y).float().mean()

    found = find_ticket(model, (X, Y), 0.5, "edge_popup", epochs=2, batch=60, metric=hits)
    assert found.report.data == "held-out"
    held = [x for x in map(tuple, X.tolist()) if x not in seen]
    assert len(held) == found.report.ticket.examples == 20
    rows = torch.tensor([x in held for x in map(tuple, X.tolist())])
    wanted = 100 * float(hits(network()(X[rows]), Y[rows]))
    assert found.report.initial.accuracy == pytest.approx(wanted)
    sparse = 100 * float(hits(found.apply(network())(X[rows]), Y[rows]))
    assert found.report.ticket.accuracy == pytest.approx(sparse)
    assert found.report.ticket.metric == pytest.approx(sparse / 100)
    assert "hits" in str(found)


def test_validation_data_and_training_batches():
    validation = find_ticket(network(), (X, Y), 0.5, epochs=1, validation=[(X[:7], Y[:7])]).report
    assert (validation.data, validation.ticket.examples) == ("validation", 7)
    loader = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 200, 10)]
    training = find_ticket(network(), loader, 0.5, epochs=1).report
    assert (training.data, training.ticket.examples) == ("training", 20)
    whole = find_ticket(network(), (X, Y), 0.5, epochs=1, validation=None).report
    assert (whole.data, whole.ticket.examples) == ("training", 200)


def test_both_densities_are_printed():
    found = find_ticket(network(), (X, Y), 0.1, "edge_popup", epochs=1)
    left = found.mask.kept + 32 + 3
    assert f"{found.mask.kept} of 352 gated weights kept: density {found.mask.density:.4g}" in str(found)
    assert f"{left / 387:.4g} of all 387 parameters" in str(found)
    assert len(repr(found)) < 200
    assert "trained" in str(find_ticket(network(), (X, Y), 0.5, "imp", epochs=1, levels=1))


def test_the_statistics_of_batch_norm_belong_to_the_reported_ticket():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    found = find_ticket(model, (X, Y), 0.5, epochs=20, batch=60, validation=(X, Y), lr=0.1)
    out = found.apply(model).eval()(X)
    assert found.report.ticket.accuracy == pytest.approx(100 * float((out.argmax(1) == Y).float().mean()))
    assert found.report.ticket.accuracy > found.report.ticket.most_frequent + 10
    assert math.isfinite(found.report.ticket.loss)


def test_a_model_that_computes_its_own_loss_too_is_measured_once():
    def forward(model, batch):
        out = model(batch["x"])
        F.cross_entropy(out, batch["y"])  # as a model of transformers that is given labels
        return out, batch["y"]

    loss = network()
    found = find_ticket(loss, {"x": X, "y": Y}, 0.5, epochs=1, forward=forward)
    assert found.report.ticket.labels == 20


def test_labels_inside_forward_are_checked_too():
    with pytest.raises(ValueError, match="subtract 1 from the labels"):
        find_ticket(network(), {"x": X, "y": Y + 1}, 0.5, forward=lambda m, b: F.cross_entropy(m(b["x"]), b["y"]))


def test_the_loss_of_a_ticket_is_that_of_its_search():
    """Frozen weights cannot scale the logits, so the loss without the factor of the search says little."""
    model = network()
    found = find_ticket(model, (X, Y), 0.5, epochs=3, validation=(X, Y))
    assert found.logit_scale != 1
    out = found.apply(copy.deepcopy(model)).eval()(X)
    assert found.report.ticket.loss == pytest.approx(float(F.cross_entropy(out * found.logit_scale, Y)), rel=1e-4)
    assert found.report.ticket.loss != pytest.approx(float(F.cross_entropy(out, Y)), rel=1e-3)
    assert f", with the logits times {found.logit_scale:.3g};" in str(found.report)
    assert found.report.ticket.accuracy == pytest.approx(100 * float((out.argmax(1) == Y).double().mean()))
