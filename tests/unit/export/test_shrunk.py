import importlib.util

import pytest
import torch
from exports import closed_ticket
from torch import nn

from crbg.errors import CrbgError
from crbg.export import export_ticket, shrunk
from crbg.export.check import Examples


@pytest.mark.long
def test_a_ticket_is_exported_checked_and_timed_without_its_dead_units(tmp_path, monkeypatch):
    monkeypatch.setattr("crbg.export.inputs.ROUNDS", 1)
    x = torch.rand(130, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    examples = Examples("noise", x, torch.zeros(130, dtype=torch.long))
    report = export_ticket(closed_ticket(), "shrunk", tmp_path / "net", examples=examples, bench=True)
    assert set(report.files) == {"model.pt2"}
    before, after = 16 * 8 + 8 * 6 + 6 * 3, 16 * 4 + 4 * 3 + 3 * 3
    assert (report.details["parameters before"], report.details["parameters"]) == (before, after)
    assert report.check["equal_predictions"] == 130
    way, both = (
        ("onnxruntime" if importlib.util.find_spec("onnxruntime") else "PyTorch"),
        ("with dead units", "without"),
    )
    times = {f"{which}, {way}, batch {n}, microseconds" for n in (1, 32, 256) for which in both}
    assert times == {name for name in report.bench if "microseconds" in name}
    assert [report.bench[f"{which}, parameters"] for which in both] == [before, after]
    program = torch.export.load(tmp_path / "net" / "model.pt2").module()
    torch.testing.assert_close(program(x[:1]), closed_ticket().model()(x[:1]))


def test_a_ticket_without_dead_units_writes_nothing(tmp_path):
    with pytest.raises(CrbgError, match="no unit of the network is dead"):
        export_ticket(closed_ticket(dead=False), "shrunk", tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_outputs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shrunk, "save", lambda model, example, path: path.write_text("written"))
    monkeypatch.setattr(shrunk, "loaded", lambda path: lambda x: [torch.ones(len(x), 3)])
    with pytest.raises(CrbgError, match="outputs of the written file differ by"):
        export_ticket(closed_ticket(), "shrunk", tmp_path / "net")
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_an_error(tmp_path):
    with pytest.raises(CrbgError, match=r"torch\.export cannot trace Branches"):
        shrunk.save(Branches(), torch.ones(2, 3), tmp_path / "model.pt2")
