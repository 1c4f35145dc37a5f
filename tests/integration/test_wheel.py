import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from paths import ROOT

pytestmark = pytest.mark.xdist_group("processes")

STRANGER = """
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crbg

home = Path(crbg.__file__).resolve()
assert home.is_relative_to(Path("site").resolve()), home
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(256, 12)
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
before = {n: t.clone() for n, t in model.state_dict().items()}
found = crbg.find_ticket(model, DataLoader(TensorDataset(x, y), 32, shuffle=True), density=0.25, epochs=10, lr=0.1)
assert all(t.equal(before[n]) for n, t in model.state_dict().items())
total = 12 * 32 + 32 * 3
assert found.mask.total == total
assert abs(found.mask.kept - 0.25 * total) <= 0.02 * 0.25 * total, found.mask
assert found.exact.kept == 0.25 * total
sparse = found.apply(model)
for name, t in sparse.state_dict().items():
    kept = found.mask.get(name)
    assert t.equal(before[name] if kept is None else before[name] * kept)
assert sum(int((t != 0).sum()) for n, t in sparse.state_dict().items() if n in found.mask) == found.mask.kept
print("nonzero", found.mask.kept)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools leaves its own files beside what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "crbg", source / "crbg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out))
    return next(out.glob("crbg-*.whl"))


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        license_text = next(archive.read(n) for n in archive.namelist() if n.endswith("/LICENSE"))
    here = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "crbg").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert names == here
    assert {
        "crbg/py.typed",
        "crbg/methods/crbg.py",
        "crbg/models/timm.py",
        "crbg/data/loader.py",
        "crbg/report/page.py",
    } <= names
    assert license_text == (ROOT / "LICENSE").read_bytes()


def test_a_stranger_finds_a_ticket_with_the_wheel_alone(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel))
    (tmp_path / "stranger.py").write_text(STRANGER)
    env = {k: v for k, v in os.environ.items() if not k.startswith("CRBG_")} | {"PYTHONPATH": "site"}
    command = [sys.executable, "-P", "stranger.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nonzero ")
    script = tmp_path / "site/bin/crbg"
    assert "crbg.cli" in script.read_text()
    done = subprocess.run(
        [sys.executable, "-P", str(script), "list"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "crbg: cannot read the configuration config.yaml: No such file or directory\n",
    )
