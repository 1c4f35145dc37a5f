"""The command `crbg export`."""

import importlib.util
import json
import signal
import subprocess
import sys

import pytest
import torch
from networks import random_mask

from crbg import Ticket, measure, models
from crbg.data.datasets import info
from crbg.data.metrics import ACCURACY, MSE
from crbg.data.sources import load
from crbg.export import packed
from crbg.models.initial_weights import initialise, tensor_digest


@pytest.fixture
def ticket(tmp_path, monkeypatch):
    """Save a ticket for the data set `digits` as ticket.safetensors in the current folder, and return it."""
    monkeypatch.chdir(tmp_path)
    model = models.build("lenet-20-10", (1, 28, 28), 10)
    initialise(model, "uniform", 1.0, 7)
    initial = tensor_digest(model.state_dict())
    ticket = Ticket(random_mask(model, 0.1), 7, "uniform", 1.0, "lenet-20-10", (1, 28, 28), 10, initial)
    ticket.save("ticket.safetensors", pack="bits")
    return ticket


EXPORT = ("export", "ticket.safetensors", "--to", "packed", "--out", "shipped")


def refused(answer):
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("crbg: ")
    assert err.count("\n") == 1
    return err


def test_a_ticket_is_packed_checked_and_measured(ticket, crbg, tmp_path):
    code, out, _ = crbg(*EXPORT, "--check", "digits", "--bench")
    assert code == 0
    assert Ticket.load("shipped/ticket.safetensors") == ticket
    report = json.loads((tmp_path / "shipped/report.json").read_text())
    size = (tmp_path / "shipped/ticket.safetensors").stat().st_size
    assert report["sizes"]["written"] == size < (tmp_path / "ticket.safetensors").stat().st_size
    assert report["check"]["equal_predictions"] == report["check"]["examples"] == 300
    for name in ("dense float32", "entropy by layer", "written", "equal predictions", "packed read seconds"):
        assert f"\n{name} " in out
    assert f"{size:,}" in out
    assert "shipped: ticket.safetensors, report.json" in out


SLOW = """
import time
from crbg.cli import main
from crbg.export import packed

def write(ticket, folder, draw):
    (folder / "half").write_text("unfinished")
    print("writing", flush=True)
    time.sleep(60)

packed.write = write
main()
"""


def test_a_terminated_export_removes_what_was_written(ticket, tmp_path):
    with subprocess.Popen([sys.executable, "-c", SLOW, *EXPORT], stdout=subprocess.PIPE, text=True) as export:
        assert export.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        export.send_signal(signal.SIGTERM)
        assert export.wait(30) == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.safetensors"]


def test_a_failed_check_removes_what_was_written(ticket, crbg, tmp_path, monkeypatch):
    def other(model, inputs):
        return torch.rand(len(inputs), 10)

    monkeypatch.setattr(packed, "predictions", other)
    assert "predictions on digits, validation equal those" in refused(crbg(*EXPORT, "--check", "digits"))
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.safetensors"]


def test_invalid_input_is_one_line(ticket, crbg, tmp_path):
    def change(**words):
        given = {"ticket": "ticket.safetensors", "--to": "packed", "--out": "shipped"} | words
        path = given.pop("ticket")
        return refused(crbg("export", path, *(w for pair in given.items() for w in pair)))

    assert "cannot read the ticket none" in change(ticket="none")
    assert "unknown target 'zip': choose from" in change(**{"--to": "zip"})
    if importlib.util.find_spec("onnxruntime") is None:
        assert "run `pip install crbg[export]`" in change(**{"--to": "onnx"})
    assert "does not support draw='fly'" in change(**{"--draw": "fly"})
    assert "unknown data set 'mnits'" in change(**{"--check": "mnits"})
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped/mine").write_text("")
    assert "shipped exists already" in change()
    (tmp_path / "ticket.safetensors").write_bytes(b"no ticket")
    assert "is not a valid ticket" in change()


OTHERS = {"toy_series": "lenet-20-10", "toy_text": "lstm-8", "toy_graph": "gcn-8"}


@pytest.mark.parametrize(
    ("data", "to", "measured"),
    [
        ("toy_series", "packed", "mse"),
        ("toy_series", "c", "mse"),
        ("toy_text", "packed", "accuracy"),
        ("toy_graph", "packed", "accuracy"),
    ],
)
def test_tickets_for_other_data_are_checked(data, to, measured, crbg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry, name = info(data), OTHERS[data]
    model, _ = models.initial(name, entry.shape, entry.classes, "kaiming_normal", 1.0, 7)
    initial = tensor_digest(model.state_dict())
    mask = random_mask(model, 0.5)
    Ticket(mask, 7, "kaiming_normal", 1.0, name, entry.shape, entry.classes, initial).save("ticket.safetensors")
    code, _, err = crbg("export", "ticket.safetensors", "--to", to, "--out", "shipped", "--check", data)
    assert code == 0, err
    found = json.loads((tmp_path / "shipped/report.json").read_text())["check"]
    part = load(data).validation
    assert found["examples"] == len(part)
    assert found.get("predictions") == (part.y.numel() if data == "toy_text" else None)
    metric = MSE if measured == "mse" else ACCURACY
    expected = measure.quality(model, part.batches(), mask, metric)
    assert found[measured] == pytest.approx(expected, rel=1e-5)
    assert found[f"{measured}_exported"] == pytest.approx(expected, rel=1e-5)


def test_a_forecast_that_differs_is_found(crbg, tmp_path, monkeypatch):
    test_tickets_for_other_data_are_checked("toy_series", "packed", "mse", crbg, tmp_path, monkeypatch)
    given = iter([torch.zeros(195, 6), torch.full((195, 6), 0.1)])
    monkeypatch.setattr(packed, "predictions", lambda model, inputs: next(given))
    words = ("export", "ticket.safetensors", "--to", "packed", "--out", "again", "--check", "toy_series")
    assert "outputs on toy_series, validation differ from those of the ticket's network by 0.1" in refused(crbg(*words))


def test_a_graph_network_needs_a_graph_as_an_example(crbg, tmp_path, monkeypatch):
    test_tickets_for_other_data_are_checked("toy_graph", "packed", "accuracy", crbg, tmp_path, monkeypatch)
    words = ("export", "ticket.safetensors", "--to", "shrunk", "--out", "again")
    assert "gcn-8 needs a graph as an example; in Python, pass one to" in refused(crbg(*words))
