import json
import math

import pytest
import torch
from exports import noise, small_ticket

from crbg import Mask
from crbg.errors import CrbgError
from crbg.export import export_ticket, registry
from crbg.export.registry import Target
from crbg.export.write import Report, sizes


@pytest.fixture
def ticket():
    return small_ticket(0.2)


@pytest.fixture
def examples():
    return noise()


class Fake:
    """A target that writes one file, and fails where it is told to."""

    fail = ""

    def step(self, name):
        if self.fail == name:
            raise CrbgError(f"{name} failed")

    def write(self, ticket, folder, draw):
        (folder / "sub").mkdir()
        (folder / "sub/net.txt").write_text("weights")
        self.step("write")
        return {"draw": draw}

    def check(self, ticket, folder, examples):
        self.step("check")
        return {"equal_predictions": len(examples.labels)}

    def bench(self, ticket, folder):
        self.step("bench")
        return {"seconds": 0.25}


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    monkeypatch.setitem(registry.TARGETS, "fake", Target("a test", "none", ("stored", "start")))
    monkeypatch.setattr(Target, "load", lambda self: made)
    return made


def test_an_export_is_a_folder_with_files_and_a_report(ticket, examples, fake, tmp_path):
    out = tmp_path / "new" / "net"
    report = export_ticket(ticket, "fake", out, examples=examples, bench=True)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["report.json", "sub/net.txt"]
    assert [p.name for p in out.parent.iterdir()] == ["net"]
    written = json.loads((out / "report.json").read_text())
    assert written["files"] == report.files == {"sub/net.txt": 7}
    assert written["sizes"]["written"] == 7
    assert written["details"] == {"draw": "stored"}, "the first value is the default"
    assert written["check"] == {"equal_predictions": 30}
    assert written["bench"] == {"seconds": 0.25}
    assert written["ticket"]["kept"] == ticket.mask.kept
    assert (written["target"], written["ticket"]["seed"]) == ("fake", 7)


def test_without_a_check_and_a_benchmark_the_report_has_none(ticket, fake, tmp_path):
    fake.fail = "check"
    report = export_ticket(ticket, "fake", tmp_path / "net", draw="start")
    assert (report.check, report.bench, report.details) == ({}, {}, {"draw": "start"})


@pytest.mark.parametrize("step", ["write", "check", "bench"])
def test_a_failed_step_leaves_nothing(step, ticket, examples, fake, tmp_path):
    fake.fail = step
    with pytest.raises(CrbgError, match=f"{step} failed"):
        export_ticket(ticket, "fake", tmp_path / "net", examples=examples, bench=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CrbgError):
        export_ticket(ticket, "fake", tmp_path / "empty", examples=examples, bench=True)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_an_empty_folder_is_used_and_others_are_refused(ticket, fake, tmp_path):
    export_ticket(ticket, "fake", tmp_path)
    with pytest.raises(CrbgError, match="exists already and is not an empty folder; choose another folder"):
        export_ticket(ticket, "fake", tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CrbgError, match="exists already"):
        export_ticket(ticket, "fake", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(CrbgError, match="cannot write"):
        export_ticket(ticket, "fake", tmp_path / "file" / "net")


def test_targets_and_draws_are_checked_first(ticket, fake, tmp_path):
    for words, draw, message in (
        ("pakced", None, "unknown target 'pakced': did you mean 'packed'"),
        ("fake", "fly", "'fake' does not support draw='fly'; choose from stored, start"),
        ("packed", "stored", "'packed' does not support draw='stored'; leave it out"),
    ):
        with pytest.raises(CrbgError, match=message):
            export_ticket(ticket, words, tmp_path / "net", draw=draw)
    assert not list(tmp_path.iterdir())


def test_sizes_of_a_mask():
    half = Mask({"a": torch.tensor([True, False] * 40), "b": torch.ones(20, dtype=torch.bool)})
    found = {"dense float32": 400, "dense int8": 100, "mask as bits": 13, "entropy by layer": 10, "written": 5}
    assert sizes(half, 5) == found
    p = 1 / 8
    entropy = 800 * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert sizes(Mask({"a": torch.arange(800) % 8 == 0}), 0)["entropy by layer"] == math.ceil(entropy)


def test_the_report_is_tables(ticket, examples, fake, tmp_path):
    sizes_, details, check, speed = export_ticket(ticket, "fake", tmp_path, examples=examples, bench=True).parts()
    assert ["written", "7", "0.0018"] in sizes_.rows
    assert details.rows == [["draw", "stored"]]
    assert check.rows == [["equal predictions", "30"]]
    assert speed.rows == [["seconds", "0.25"]]


def test_the_table_of_speed_has_a_column_per_batch_size():
    bench = {"torch, batch 32, microseconds": 9.0, "torch, batch 1, microseconds": 2.0, "C, batch 1, times": 4.0}
    speed, rest = Report("fake", {}, {"dense float32": 1}, {}, {}, {}, bench | {"flash, bytes": 7}).parts()[1:]
    assert speed.head == ["speed", "batch 1", "batch 32"]
    assert speed.rows == [["torch, microseconds", "2", "9"], ["C, times", "4", "-"]]
    assert rest.rows == [["flash, bytes", "7"]]
