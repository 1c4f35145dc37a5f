"""The description of the machine in provenance.json."""

import sys

import torch

from crbg.runs.provenance import peak_memory_mb, provenance


def test_a_system_that_does_not_report_its_memory_ends_no_run(monkeypatch):
    """Windows has no module `resource`."""
    assert 50 < peak_memory_mb() < 100_000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert provenance(torch.device("cpu"), 1.0, 1.0, 2.0)["peak_memory_mb"] == 0
