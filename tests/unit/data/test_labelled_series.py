"""Series to classify: the files of the archive, generated waves, stratified parts and the nearest neighbour."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from crbg.data import labelled_series
from crbg.data.datasets import DATA
from crbg.data.files import Source
from crbg.data.parts import TensorPart
from crbg.data.sources import load
from crbg.errors import CrbgError

HEAD = "#The data\n@seriesLength 3\n@classLabel true 1 2\n@data\n"


def read(body):
    return labelled_series.read(HEAD + body, "here.ts")


def test_files_of_the_archive_are_read():
    x, y = read("0.5,-1,2e-1:1\n1,2,3:2\n")
    assert x.tolist() == [[0.5, -1.0, np.float32(0.2)], [1, 2, 3]]
    assert y.tolist() == [1, 0]  # October to March is class 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1,2:1\n1,?:1\n", "here.ts: series 2 needs numbers and the class 1 or 2, but it is '1,\\?:1'"),
        ("1,2:3\n", "series 1 needs numbers and the class 1 or 2"),
        ("1,2,3:1\n1,2:1\n", "series of one length"),
        ("1,nan:1\n", "finite values"),
        ("", "here.ts needs at least one series"),
    ],
)
def test_damaged_files_are_refused(body, message):
    with pytest.raises(CrbgError, match=message):
        read(body)


def test_both_files_are_joined_and_split_by_class(tmp_path, monkeypatch):
    files, folder = {}, tmp_path / "italy_power"
    folder.mkdir()
    for name, count in (("a.ts", 8), ("b.ts", 32)):
        content = (HEAD + "".join(f"{i},{count},0:{1 + i % 2}\n" for i in range(count))).encode()
        (folder / name).write_bytes(content)
        files[name] = Source("nowhere", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(labelled_series, "FILES", files)
    entry = replace(DATA["italy_power"], shape=(3,), train=20, validation=12, test=8)
    data = labelled_series.load(entry, tmp_path)
    parts = (data.train, data.validation, data.test)
    assert [len(p) for p in parts] == [20, 12, 8]
    assert [int(p.y.sum()) for p in parts] == [10, 6, 4]
    rows = torch.cat([p.x for p in parts])
    assert len(rows.unique(dim=0)) == 40, "every series is in one part"
    assert torch.cat([p.y for p in parts]).equal(1 - rows[:, 0].long() % 2), "labels stay with their series"
    with pytest.raises(CrbgError, match="not what `crbg list data` states"):
        labelled_series.load(replace(entry, train=21), tmp_path)


def test_generated_waves_differ_by_class_only():
    data = load("toy_waves")
    assert data.digest.startswith("2ffecdfab87f"), "the same on every machine"
    for part in (data.train, data.validation, data.test):
        assert part.y.bincount().unique().numel() == 1
    half, constant = data.naive["nearest neighbour"](data.validation), 100 / 3
    assert constant + 20 < half < 95, "neither trivial nor impossible"


def test_the_nearest_neighbour_is_found():
    train = TensorPart(torch.tensor([[0.0, 0], [1, 1]]), torch.tensor([0, 1]))
    part = TensorPart(torch.tensor([[0.2, 0.1], [0.9, 0.9], [2, 2], [0.4, 0.4]]), torch.tensor([0, 1, 0, 0]))
    assert labelled_series.nearest_neighbour(train, part) == 75.0
