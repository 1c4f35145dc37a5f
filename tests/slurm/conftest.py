"""Fixtures that start a real SLURM cluster on this machine.

They install packages and write to /etc/slurm, so they run only as root and with CRBG_TEST_SLURM=1.
"""

import os
import subprocess
from pathlib import Path

import pytest
from cluster import HERE, Clone, is_up, results_of, sh, wait


def pytest_collection_modifyitems(items):
    allowed = os.environ.get("CRBG_TEST_SLURM") == "1"
    for item in items:
        starts_it = HERE in Path(item.fspath).parents and item.get_closest_marker("slurm")
        if starts_it and not (allowed and os.geteuid() == 0):
            item.add_marker(pytest.mark.skip(reason="starts a real SLURM: needs root on Debian and CRBG_TEST_SLURM=1"))


@pytest.fixture(scope="session")
def cluster():
    """Start SLURM, and stop it after the tests unless it was already running."""
    was_up = is_up()
    started = subprocess.run([HERE / "start_slurm.sh", "up"], check=False)
    assert started.returncode == 0, "start_slurm.sh could not start SLURM; what it wrote above says why"
    yield
    if not was_up:
        subprocess.run([HERE / "start_slurm.sh", "down"], check=False)


@pytest.fixture
def clone(tmp_path, cluster):
    made = Clone(tmp_path)
    yield made
    if made.dag and made.dag.poll() is None:
        made.kill()
    sh("scancel", "--user", "root")
    wait(lambda: not sh("squeue", "-h").stdout.strip(), 60)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    return results_of(Clone(tmp_path_factory.mktemp("undisturbed")))
