import doctest
import importlib

import pytest

MODULES = ["crbg.masks.mask", "crbg.masks.select", "crbg.gates.attach", "crbg.gates.gaussian", "crbg.ticket"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may write files
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
