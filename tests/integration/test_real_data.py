"""Long tests on real MNIST, run by `make test-slow` with CRBG_DATA set."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paths import ROOT

from crbg import methods, models
from crbg.data.loader import BatchLoader
from crbg.experiments import config
from crbg.measure.accuracy import accuracy
from crbg.models import initial_weights

pytestmark = [pytest.mark.slow, pytest.mark.data]


def search(mnist, density: float, epochs: int, **options):
    model = models.build("lenet-300-100", mnist.in_shape, mnist.classes)
    initial_weights.initialise(model, "uniform", 0.22, 0)
    task = methods.SearchTask(BatchLoader(mnist.train, 256, 0), density, epochs, 0, torch.nn.functional.cross_entropy)
    return model, methods.get("crbg").find(model, task, methods.options("crbg", options))


@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02])
def test_controller_lands_within_two_percent(mnist, density, noise):
    model, found = search(mnist, density, 15, noise=noise, lr=0.03)
    natural = sum(int((s > 0.5).sum()) for s in found.scores.values()) / found.mask.total
    assert abs(natural - density) <= 0.02 * density
    assert accuracy(model, mnist.validation.batches(), found.mask) > 93


def test_forty_epochs_take_a_minute_on_two_cores(mnist):
    torch.set_num_threads(2)
    start = time.monotonic()
    search(mnist, 0.1, 40, noise=0.25)
    assert time.monotonic() - start < 60


def test_one_page_example_reaches_its_promise(mnist):
    lines = (ROOT / "examples" / "one_page.py").read_text()
    assert len(lines.splitlines()) <= 80
    assert not re.search(r"^\s*(from|import) crbg", lines, re.M)
    out = subprocess.run(
        [sys.executable, "examples/one_page.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    reached, sparsity = re.search(r"test accuracy ([\d.]+)% at sparsity ([\d.]+)%", out).groups()
    assert float(reached) >= 97.0
    assert float(sparsity) >= 80.0


def test_a_recorded_run_can_be_repeated(mnist):
    """Repeating a recorded run on this machine agrees with the record up to the rounding differences between CPUs."""
    from crbg.experiments import record_store
    from crbg.runs.execute import execute
    from crbg.runs.setup import Workspace

    configuration = config.read([ROOT / "config.yaml"])
    cell = next(
        c for c in configuration.experiments["lenet_tune"].cells if c.arm == "crbg_no_noise" and c.spec.density == 0.05
    )
    recorded = record_store.find_run(configuration, cell.spec, cell.seed)
    if recorded is None:
        pytest.skip("no records in this clone")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        again = execute(cell.spec, cell.seed, Workspace(Path(folder)))
    assert again.digests.initial == recorded.record.digests.initial
    assert abs(again.value() - recorded.record.value()) < 0.5
