import io
import sys

import pytest

from crbg.training import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("wanted", "stderr", "delay", "shown"),
    [
        (None, Terminal, 0.0, True),
        (None, Terminal, 60.0, False),
        (None, io.StringIO, 0.0, False),
        (True, io.StringIO, 60.0, True),
        (False, Terminal, 0.0, False),
    ],
)
def test_a_bar_is_shown_on_a_terminal_after_a_delay(wanted, stderr, delay, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setattr(progress, "DELAY", delay)
    with progress.reporting(wanted) as report:
        for done in range(1, 5):
            report(done, 4)
    text = sys.stderr.getvalue()
    assert ("4/4" in text and "steps/s" in text) == shown
    assert bool(text.strip()) == shown


def test_a_function_is_called():
    with progress.reporting(lambda *numbers: told.append(numbers)) as report:
        told = []
        report(1, 2)
    assert told == [(1, 2)]
