import importlib.util
from pathlib import Path

import pytest
import torch
from exports import closed_ticket
from torch import nn

from crbg import Gaussian, attach, models
from crbg.errors import CrbgError
from crbg.export import export_ticket, measure, onnx, to_onnx
from crbg.export.check import Examples
from crbg.export.inputs import outputs, rows

EXTRA = ("onnx", "onnxscript", "onnxruntime")
installed = all(importlib.util.find_spec(name) for name in EXTRA)
needs_extra = pytest.mark.skipif(not installed, reason="needs `pip install crbg[export]`")


@pytest.mark.skipif(installed, reason="the extra is installed")
def test_without_the_extra_one_line_names_it(tmp_path):
    with pytest.raises(CrbgError, match=r"not found: run `pip install crbg\[export\]`"):
        to_onnx(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "model.onnx")


def test_a_missing_package_is_named():
    with pytest.raises(CrbgError, match=r"no_such_package not found: run `pip install crbg\[export\]`"):
        onnx.require("torch", "no_such_package")


def test_the_metadata_say_where_the_weights_come_from():
    ticket = closed_ticket()
    assert onnx.describe(ticket) == {
        "crbg.model": "lenet-8-6",
        "crbg.density": "0.5",
        "crbg.mask": ticket.mask.digest(),
        "crbg.weights": "uniform, scale 1, seed 7",
    }
    assert onnx.describe(closed_ticket(law="given"))["crbg.weights"] == "stored weights"


@needs_extra
@pytest.mark.parametrize("name", ["lenet-8", "conv2", "resnet20"])
def test_registered_networks_run_at_every_batch_size(name, tmp_path):
    model, _ = models.initial(
        name, (3, 8, 8), 4, "kaiming_normal", 1.0, 0, **({"width": 0.25} if "l" not in name else {})
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert to_onnx(model.train(), x, tmp_path / "model.onnx") <= 1e-6
    assert model.training
    run = onnx.session(tmp_path / "model.onnx")
    for size in (1, 3):
        torch.testing.assert_close(run(rows(x, size)), outputs(model.eval(), rows(x, size)), rtol=1e-4, atol=1e-4)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x, y):
        return {"logits": self.a(x) + self.b(y), "x": self.a(x)}


@needs_extra
@pytest.mark.parametrize("keywords", [True, False])
def test_models_with_several_inputs_and_outputs_and_with_gates(keywords, tmp_path):
    model = attach(TwoInputs(), lambda n, w: Gaussian(torch.full_like(w, 0.25)))
    example = {"x": torch.ones(3, 3), "y": torch.ones(3, 4)}
    to_onnx(model, example if keywords else tuple(example.values()), tmp_path / "model.onnx", metadata={"of": "a test"})
    assert set(dict(model.named_parameters())) >= {"a.parametrizations.weight.0.mu"}, "the gates stay attached"
    file = importlib.import_module("onnx").load(tmp_path / "model.onnx")
    assert {p.key: p.value for p in file.metadata_props} == {"of": "a test"}


@needs_extra
def test_a_difference_is_an_error_and_an_old_file_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(CrbgError, match=r"differ by .* of the largest output, more than -1; the file was removed"):
        to_onnx(nn.Linear(3, 2), torch.ones(2, 3), path, tolerance=-1)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.onnx", "old")]


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@needs_extra
def test_a_model_that_cannot_be_exported_is_an_error(tmp_path):
    with pytest.raises(CrbgError, match=r"torch\.onnx cannot export Branches"):
        to_onnx(Branches(), torch.ones(2, 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@needs_extra
def test_a_ticket_is_exported_checked_and_timed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("crbg.export.inputs.ROUNDS", 1)
    x = torch.rand(130, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    examples = Examples("noise", x, torch.zeros(130, dtype=torch.long))
    report = export_ticket(closed_ticket(), "onnx", tmp_path / "net", examples=examples, bench=True)
    assert set(report.files) == {"model.onnx"}
    assert report.check["equal_predictions"] == 130
    times = {f"{way}, batch {n}, microseconds" for way in ("onnxruntime", "PyTorch") for n in (1, 32, 256)}
    assert set(report.bench) == times | {"onnxruntime, batch 256, peak memory, MiB"}
    assert 0 <= report.bench["onnxruntime, batch 256, peak memory, MiB"] < 100
    file = importlib.import_module("onnx").load(tmp_path / "net" / "model.onnx")
    assert {p.key: p.value for p in file.metadata_props} == onnx.describe(closed_ticket())


@needs_extra
def test_the_memory_of_a_large_network_is_that_of_its_weights(tmp_path):
    wide = nn.Sequential(nn.Linear(1000, 5000), nn.ReLU(), nn.Linear(5000, 2))  # 20 MiB of float32 weights
    found = measure({"wide": wide, "narrow": nn.Linear(1000, 2)}, torch.randn(2, 1000))
    assert found["wide, parameters"] == 5_015_002
    assert 19 < found["wide, batch 256, peak memory, MiB"] - found["narrow, batch 256, peak memory, MiB"] < 120


def test_without_the_extra_networks_are_measured_in_torch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("crbg.export.inputs.ROUNDS", 1)
    net = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    found = measure({"mine": net}, torch.randn(3, 4))
    assert set(found) == {"mine, parameters", *(f"mine, PyTorch, batch {n}, microseconds" for n in (1, 32, 256))}
    assert net.training
