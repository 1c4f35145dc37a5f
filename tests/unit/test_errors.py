"""Parts of messages, and the position of warnings."""

import contextlib

import pytest

from crbg import errors
from crbg.errors import few, reason, warn


def test_long_lists_and_errors_are_cut():
    assert few("abc") == "a, b, c"
    assert few(range(7)) == "0, 1, 2, 3, 4 and 2 more"
    assert few(range(7), most=6) == "0, 1, 2, 3, 4, 5 and 1 more"
    error = ValueError("two\n  lines" + 200 * "x")
    assert reason(error) == "ValueError: two lines" + 191 * "x"
    assert reason(error, limit=3) == "ValueError: two"
    assert reason(error, limit=None) == "ValueError: two lines" + 200 * "x"


BLOCK = """
@contextlib.contextmanager
def block():
    warn("text")
    yield
"""


def test_a_warning_points_outside_the_package_and_contextlib():
    names = {"contextlib": contextlib, "warn": warn}
    exec(compile(BLOCK, errors.__file__, "exec"), names)  # as if it were defined in the package
    with pytest.warns(UserWarning, match="text") as seen, names["block"]():
        pass
    assert [w.filename for w in seen] == [__file__]
