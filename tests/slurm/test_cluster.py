"""The helpers of this folder work without SLURM; these tests start no cluster and run with all others."""

import re
import shutil
import subprocess

import pytest
from cluster import HERE, is_up, sh

NAMES = ("munged", "slurmctld", "slurmd", "sbatch")


def test_a_slurm_that_was_never_installed_is_not_up(monkeypatch, tmp_path):
    for path in ("", str(tmp_path)):
        monkeypatch.setenv("PATH", path)
        assert not is_up()
        done = sh("sinfo", "-h")
        assert (done.returncode, done.stdout) == (127, "")
        assert "sinfo: not installed" in done.stderr


def test_a_command_ends_as_it_ends(monkeypatch, tmp_path):
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit $SINFO_ENDS\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for status, up in ((0, True), (1, False)):
        monkeypatch.setenv("SINFO_ENDS", str(status))
        assert sh("sinfo").returncode == status
        assert is_up() is up


@pytest.mark.parametrize("there", [(), NAMES[:1], NAMES[:3], NAMES])
def test_packages_are_installed_unless_every_command_is_there(tmp_path, there):
    bash = shutil.which("bash")
    for name in ("apt-get", *there):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    text = (HERE / "start_slurm.sh").read_text()
    function = re.search(r"^install_packages\(\) \{$.*?^\}$", text, re.MULTILINE | re.DOTALL)[0]
    env = {"PATH": str(tmp_path), "D": str(tmp_path)}
    subprocess.run([bash, "-euo", "pipefail", "-c", f"{function}\ninstall_packages"], env=env, check=True)
    assert (tmp_path / "apt.log").exists() == (there != NAMES)
