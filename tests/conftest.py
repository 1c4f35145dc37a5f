import dataclasses
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

# Set before torch is imported. Losses in tests were recorded on an AMD processor; MKL's code for AVX2 gives the same
# ones on Intel processors with AVX-512, where MKL rounds differently by default.
os.environ.setdefault("MKL_CBWR", "AVX2")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported: parallel test workers share the cores

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # set before Triton is imported, so that its kernels run on the CPU

from crbg import cli, models
from crbg.data import datasets
from crbg.data.sources import load
from crbg.experiments import config
from crbg.experiments.record import Run
from crbg.models.initial_weights import initialise
from crbg.runs.execute import execute
from crbg.runs.setup import Workspace
from crbg.runs.verify import Verifier


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def temporary_files_apart(tmp_path_factory):
    """Give each pytest worker its own temporary folder, so that workers do not share the GPU locks stored there."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    """Forget the data root of a configuration that a test reads."""
    monkeypatch.setattr(datasets, "_configured", None)


@pytest.fixture
def crbg(capsys):
    """Return a function that runs a `crbg` command and returns its exit status, stdout and stderr."""

    def type_in(*words):
        capsys.readouterr()
        code = cli.main(list(words))
        out = capsys.readouterr()
        return code, out.out, out.err

    return type_in


@pytest.fixture
def one_run(tmp_path, monkeypatch, digits):
    """Return a function that runs and verifies a spec in an empty project.

    The function returns the workspace, the spec, the record and the result of the verifier.
    """

    def do(spec):
        monkeypatch.chdir(tmp_path)
        body = {"seeds": [0], "base": dataclasses.asdict(spec) | {"options": dict(spec.options)}, "arms": {"a": {}}}
        made = config.check({"experiments": {"one": body}}, ("here",))
        bench, cell = Workspace(made.results, loaded={"digits": digits}, selected=None), made.experiment("one").cells[0]
        record = execute(cell.spec, 0, bench)
        row = Verifier(made, bench).check(cell, Run(record, {}, None, "this run"))
        return SimpleNamespace(bench=bench, spec=cell.spec, record=record, row=row)

    return do


@pytest.fixture
def new_lenet():
    def build(seed=0, law="uniform", scale=1.0, name="lenet-300-100", **options):
        model = models.build(name, (1, 28, 28), 10, **options)
        initialise(model, law, scale, seed)
        return model

    return build


@pytest.fixture
def lenet(new_lenet):
    return new_lenet()


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture(scope="session")
def mnist():
    folder = os.environ.get("CRBG_DATA")
    if not folder:
        pytest.skip("CRBG_DATA is not set: no real MNIST to test on")
    if not (Path(folder).expanduser() / "mnist.npz").exists():
        pytest.skip("CRBG_DATA holds no mnist.npz")
    return load("mnist", folder, download=False)
