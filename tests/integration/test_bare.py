"""`crbg run` works with only torch and the numeric packages installed, as on a minimal GPU machine."""

import os
import subprocess
import sys

import pytest
import yaml
from paths import ROOT

pytestmark = pytest.mark.xdist_group("processes")

ABSENT = ("pydantic", "pydantic_core", "rich", "jinja2", "snakemake", "filelock", "tabulate", "matplotlib")
BLOCK = f"""
import importlib.util, runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec

def find_spec(name, package=None):
    return None if name.partition(".")[0] in {ABSENT!r} else found(name, package)

importlib.util.find_spec = find_spec
runpy.run_module("crbg", run_name="__main__")
"""
CONFIG = {
    "bases": {"small": {"data": "digits", "model": "lenet-16", "epochs": 1, "batch": 64}},
    "experiments": {
        "e": {
            "role": "main",
            "base": "small",
            "arms": {
                "crbg": {"method": "crbg", "grid": {"density": [0.5]}},
                "edge_popup": {"method": "edge_popup", "set": {"density": 0.5}},
                "dense": {"method": "dense"},
            },
        }
    },
}


def crbg(folder, *words, code=BLOCK):
    env = {k: v for k, v in os.environ.items() if not k.startswith("CRBG_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_runs_need_no_more_than_torch_and_numeric_packages(folder):
    done = crbg(folder, "run", "e")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pydantic is not installed") == 1
    records = sorted((folder / "results/runs").glob("*/seed0/record.json"))
    assert len(records) == 3
    before = [r.read_bytes() for r in records]
    # With all packages installed, the same configuration gives the same runs, so nothing is run again.
    whole = crbg(folder, "run", "e", code='import runpy; runpy.run_module("crbg", run_name="__main__")')
    assert whole.returncode == 0, whole.stderr
    assert "all requested runs (3) are done" in whole.stdout
    assert [r.read_bytes() for r in records] == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": {"a": {"method": "crbg", "set": {"options.noise": -1}}}}, "crbg.noise = -1.0 must be at least 0"),
        ({"arms": [1]}, "config.yaml: the configuration is malformed"),
        ({"arms": {"a": {"method": "random", "seeds": 3}}}, "install pydantic to see the exact place"),
    ],
)
def test_mistakes_are_one_message_there_too(folder, change, words):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["experiments"]["e"] |= change
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = crbg(folder, "run", "e")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
