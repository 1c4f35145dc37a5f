import pytest

import crbg


@pytest.mark.parametrize("name", crbg.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(crbg, name) is not None
    assert name in dir(crbg)


def test_functions_are_exported_and_not_modules_of_their_name():
    assert callable(crbg.attach)
    assert callable(crbg.select)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'gates_of'"):
        _ = crbg.gates_of
