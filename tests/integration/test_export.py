"""The command `crbg export`."""

import importlib.util
import json
import signal
import subprocess
import sys

import pytest
import torch
from networks import random_mask

from crbg import Ticket, models
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
