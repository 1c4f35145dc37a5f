import json
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
assert found.mask.kept == 0.25 * total, found.mask
sparse = found.apply(model)
for name, t in sparse.state_dict().items():
    kept = found.mask.get(name)
    assert t.equal(before[name] if kept is None else before[name] * kept * found.weight_gain[name])
assert sum(int((t != 0).sum()) for n, t in sparse.state_dict().items() if n in found.mask) == found.mask.kept
print("nonzero", found.mask.kept)

from crbg.export import to_c

to_c(sparse, "program", in_shape=(12,))  # needs the C files in the package
"""


STUDY = """
experiments:
  first:
    about: a first try
    role: ablation
    seeds: [0]
    base: {data: digits, model: lenet-16, epochs: 1, batch: 64, density: 0.5, scale: 0.3}
    arms: {crbg: {method: crbg}, random: {method: random, set: {epochs: 0}}}
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Return a folder with an sdist and the wheel built from it: those of `make dist`, or new ones.

    New ones are built in a copy of the project, because setuptools leaves build files in the source tree.
    """
    if made := os.environ.get("CRBG_DIST"):
        return ROOT / made
    pytest.importorskip("build", reason="`build` is not installed: no wheel is made")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "crbg", source / "crbg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python("-m", "build", "--no-isolation", "--outdir", str(out), str(source))
    return out


@pytest.fixture(scope="module")
def wheel(dist):
    return next(dist.glob("crbg-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Install only the wheel in a folder outside the clone; dependencies are those of the environment."""
    folder = tmp_path_factory.mktemp("stranger")
    python("-m", "pip", "-q", "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel))
    return folder


def python(*words):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def outside(site, *words):
    """Run Python in the folder `site`, with the installed package on its path and without the clone."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CRBG_")} | {"PYTHONPATH": "site"}
    return subprocess.run(
        [sys.executable, "-P", *words], cwd=site, env=env, capture_output=True, text=True, check=False
    )


def test_the_files_pass_the_checks_of_a_package_index(dist):
    pytest.importorskip("twine")
    python("-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
    assert sorted(p.suffix for p in dist.iterdir()) == [".gz", ".whl"]


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


def test_a_stranger_finds_a_ticket_with_the_wheel_alone(site):
    (site / "stranger.py").write_text(STRANGER)
    done = outside(site, "stranger.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nonzero ")


def test_a_stranger_runs_an_experiment_with_the_wheel_alone(site):
    script = site / "site/bin/crbg"
    assert "crbg.cli" in script.read_text()
    (site / "first.yaml").write_text(STUDY)
    done = outside(site, str(script), "run", "first", "--config", "first.yaml", "--threads", "1")
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in (site / "results/runs").glob("*/seed0/record.json")]
    assert {r["spec"]["method"] for r in records} == {"crbg", "random"}
    done = outside(site, str(script), "list")
    assert done.returncode == 2
    assert "config.yaml" in done.stderr, "without a configuration the message names the file that is missing"
