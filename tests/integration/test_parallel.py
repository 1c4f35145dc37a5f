"""A run on two torchrun processes trains like a run on one process, has a single writer, and resumes exactly."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from paths import ROOT

from crbg import cli
from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.experiments import attempts
from crbg.runs.execute import _outcome
from crbg.training import distributed
from crbg.training.batches import Later

pytestmark = pytest.mark.xdist_group("processes")

BASE = {"data": "digits", "model": "lenet-32-16", "density": 0.2, "scale": 0.5, "batch": 63, "epochs": 3}
CONFIG = {
    "results": "results",
    "device": "cpu",
    "experiments": {
        "pair": {
            "seeds": [0],
            "base": BASE,
            "arms": {
                "edge_popup": {"method": "edge_popup"},
                "crbg": {"method": "crbg", "set": {"options": {"noise": 0.1}}},
            },
        }
    },
}


def started(folder, words, processes):
    """Return the command line of `crbg run` and the arguments for `subprocess` that start it."""
    start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *start, "crbg", "run", "pair", *words]
    return command, {"cwd": folder, "env": environment, "text": True}


def crbg(folder, *words, processes=1):
    command, how = started(folder, words, processes)
    done = subprocess.run(command, **how, capture_output=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def records(folder):
    return {p.parents[1].name.split("-")[0]: p.read_text() for p in folder.glob("results/runs/*/seed0/record.json")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = {}
    for name, processes in (("one", 1), ("two", 2)):
        out[name] = tmp_path_factory.mktemp(name)
        (out[name] / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        code, said = crbg(out[name], processes=processes)
        assert code == 0, said
        assert said.count("validation") == 2  # only the first process prints
    return out


def test_two_processes_find_what_one_finds(folders):
    """Two processes share a batch of 63 as 32 and 31 images, so an unweighted mean of the two means would be wrong."""
    one, two = ({k: json.loads(v) for k, v in records(folders[name]).items()} for name in ("one", "two"))
    assert set(one) == set(two) == {"edge_popup", "crbg"}
    for method, ours in two.items():
        assert ours["digests"]["initial"] == one[method]["digests"]["initial"]
        a, b = (r[method]["validation"]["readings"]["binary"]["accuracy"] for r in (one, two))
        assert a == pytest.approx(b, abs=3.0)
    histories = [
        [
            json.loads(line)
            for line in next(folders[n].glob("results/runs/edge_popup*/seed0/history.jsonl")).read_text().splitlines()
        ]
        for n in ("one", "two")
    ]
    assert [row["loss"] for row in histories[0]] == pytest.approx([row["loss"] for row in histories[1]], rel=1e-3)


def test_a_pause_of_two_processes_changes_no_byte(tmp_path):
    """SIGTERM is sent to torchrun only, as on a cluster; all processes stop at the same step and share a checkpoint."""
    arms = {"crbg": {"method": "crbg", "set": {"options": {"noise": 0.1}, "epochs": 100}}}
    config = CONFIG | {"save_every": 1, "experiments": {"pair": CONFIG["experiments"]["pair"] | {"arms": arms}}}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    assert crbg(tmp_path / "whole", processes=2)[0] == 0
    command, how = started(tmp_path / "stopped", (), 2)
    with subprocess.Popen(command, **how, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as torchrun:
        while not list((tmp_path / "stopped").glob("results/runs/*/seed0/checkpoint.pt")):
            assert torchrun.poll() is None, torchrun.communicate()
            time.sleep(0.05)
        torchrun.send_signal(signal.SIGTERM)
        assert torchrun.wait() != 0
    assert not records(tmp_path / "stopped")
    for _ in range(2):  # the second time nothing is left to do, and no process may hang
        code, said = crbg(tmp_path / "stopped", processes=2)
        assert code == 0, said
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_shares_make_up_the_batch(monkeypatch):
    pixels = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    feed = BatchLoader(ImagePart(pixels, torch.arange(16), torch.zeros(1), torch.ones(1)), 7, 0, flip=True, crop=2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    # torchrun may start programs other than `crbg run`, which do not share batches.
    assert distributed.share(feed) == (feed, 1.0)
    assert distributed.first()
    monkeypatch.setattr(distributed, "together", True)
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert distributed.first() is (rank == 0)
        mine, weight = distributed.share(Later(feed, 1))
        parts.append((weight, list(mine.epoch(0, 1))))
        assert len(mine) == len(feed)
    ((x, y),) = feed.epoch(1, 1)
    for k, (_, batches) in enumerate(parts):
        ((a, b),) = batches
        assert torch.equal(a, x[k::3])
        assert torch.equal(b, y[k::3])
    assert sum(weight * float(batches[0][0].mean()) for weight, batches in parts) / 3 == pytest.approx(float(x.mean()))
    with pytest.raises(CrbgError, match="a batch of 2 cannot be split over 3 processes"):
        distributed.share(BatchLoader(feed.part, 2, 0))


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    picked = []

    def pick(name):
        picked.append(name)
        return torch.device("cuda", 0) if name == "cuda:0" else name

    assert distributed.place("auto", pick) == "auto"
    monkeypatch.setattr(distributed, "together", True)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    picked.clear()
    assert distributed.place("auto", pick) == distributed.place("cuda", pick) == torch.device("cuda:1")
    assert not picked  # the first process on a node reserves one GPU for each process on the node, by index
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.place("auto", pick) == torch.device("cuda:0")
    assert picked == ["cuda:0", "cuda:1"]
    assert distributed.place("cpu", pick) == "cpu"


def test_other_commands_refuse_to_be_several(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["list"]) == 2
    assert "only `crbg run` supports several processes" in capsys.readouterr().err


def test_a_process_that_vanished_is_no_mistake_in_the_code(monkeypatch):
    gone = RuntimeError("Connection closed by peer")
    assert _outcome(gone) == attempts.CODE
    monkeypatch.setattr(distributed, "together", True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _outcome(gone) == attempts.KILLED
    assert _outcome(CrbgError("wrong input")) == attempts.INPUT
