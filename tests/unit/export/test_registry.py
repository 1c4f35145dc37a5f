import subprocess
import sys

import pytest

from crbg import export
from crbg.export import registry


@pytest.mark.parametrize("name", registry.TARGETS)
def test_every_target_has_the_functions_of_an_exporter(name):
    module = registry.get(name).load()
    assert all(callable(getattr(module, f)) for f in ("write", "check", "bench"))


@pytest.mark.parametrize("name", export.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(export, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'to_nothing'"):
        _ = export.to_nothing


def test_the_registry_does_not_import_torch():
    code = "import sys, crbg.export.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
