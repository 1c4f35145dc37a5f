"""The example for microcontrollers, on this machine and, where the tools are installed, on an emulated Cortex-M4."""

import shutil
import subprocess
import sys

import pytest
from paths import ROOT

EXAMPLE = ROOT / "examples" / "microcontroller"
TICKET = ROOT / "results/recorded/tickets/crbg-lenet-300-100-mnist-d0.01-60d8d00240734d1a-seed10.safetensors"


@pytest.mark.data
@pytest.mark.skipif(not shutil.which("make") or not shutil.which("cc"), reason="needs make and a C compiler")
def test_the_example_predicts_what_python_predicts(mnist, tmp_path):
    folder = shutil.copytree(EXAMPLE, tmp_path / "example", ignore=shutil.ignore_patterns("build"))
    subprocess.run([sys.executable, "export.py", TICKET, "--images", "100"], cwd=folder, check=True)
    made = subprocess.run(["make", "test", "test-arm"], cwd=folder, check=True, capture_output=True, text=True)
    assert "all predictions are equal to those of Python" in made.stdout
    assert "emulated Cortex-M4 are equal" in made.stdout or "skipped: install gcc-arm-none-eabi" in made.stdout
    (folder / "build/expected.txt").write_text("7\n" * 100)
    assert subprocess.run(["make", "test"], cwd=folder, capture_output=True).returncode
