"""Tables and progress are shown with `rich` on a terminal and as plain lines otherwise."""

import io
import re
import subprocess
import sys

import pytest
from paths import ROOT

from crbg import console
from crbg.console import Progress, Table, duration, show

TABLE = Table(("state", "runs", "why"), [("failed", 3, "no [bold]\nspace"), ("done", 12, "")], ("together", 15, ""))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that replaces stdout and stderr with a fake terminal and returns the output stream."""
    for name in ("NO_COLOR", "CI", "TERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def begin():  # called within the test, because pytest replaces the streams for each phase
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stdout

    return begin


def test_a_plain_table_aligns_numbers_and_sets_its_total_apart():
    assert TABLE.text().splitlines() == [
        "state     runs  why",
        "--------  ----  ---------------",
        "failed       3  no [bold] space",
        "done        12",
        "--------  ----  ---------------",
        "together    15",
    ]


def test_a_table_for_markdown_escapes_its_bars():
    assert Table(("a", "b"), [("x|y", 1.5)]).markdown() == "| a | b |\n| --- | --: |\n| x/y | 1.5 |"


def test_without_a_terminal_everything_is_plain(capsys):
    show("one", TABLE, "two")
    assert capsys.readouterr().out == f"one\n\n{TABLE.text()}\n\ntwo\n"


def test_on_a_terminal_rich_draws_and_leaves_text_as_it_is(terminal):
    screen = terminal()
    long = "crbg run lenet --where " + "x" * 200
    show("a [bold] line", TABLE, long)
    said = screen.getvalue()
    assert "\x1b[1;31mfailed" in said
    assert "━" in said or "─" in said
    assert "no [bold] space" in said
    assert "a [bold] line" in said
    assert long in said, "a command is broken over lines"


def test_a_narrow_terminal_breaks_long_texts_and_no_short_ones(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen = terminal()
    show(Table(("state", "name", "run", "a", "b"), [("missing", "lenet_goals_refit", "x" * 70, "y" * 50, "z" * 50)]))
    lines = re.sub(r"\x1b\[\d*m", "", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("missing   lenet_goals_refit   xxx") for line in lines)
    assert [screen.getvalue().count(letter) for letter in "xyz"] == [70, 50, 50]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")])
def test_what_asks_for_plain_text_gets_it(terminal, monkeypatch, name, value):
    screen = terminal()
    assert console.decorated()
    monkeypatch.setenv(name, value)
    assert not console.decorated()
    show(TABLE)
    assert screen.getvalue() == TABLE.text() + "\n"


def test_one_stream_that_is_no_terminal_is_enough_for_plain_text(terminal, monkeypatch):
    terminal()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not console.decorated()


def test_a_terminal_without_rich_gets_plain_text(terminal, monkeypatch):
    screen = terminal()
    monkeypatch.setitem(sys.modules, "rich", None)
    show(TABLE)
    with Progress(2, every=0.0) as progress:
        progress.finish("a run")
        progress.step(1, 2)
    assert screen.getvalue() == TABLE.text() + "\na run\n 75.0% of 2 runs, about 0 s left\n"


def test_plain_output_never_imports_rich():
    code = (
        "import sys; from crbg.console import Progress, Table, show; show(Table(('a',), [(1,)]));"
        "Progress(2, every=0.0).step(1, 2); sys.exit('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, stdout=subprocess.PIPE)
    assert done.returncode == 0


def test_progress_in_a_log_says_the_time_left_now_and_then(capsys):
    progress = Progress(4, every=0.0)
    progress.step(0, 1)
    assert capsys.readouterr().out == "", "nothing is known before the first step"
    progress.finish()
    assert capsys.readouterr().out == " 25.0% of 4 runs, about 0 s left\n"
    quiet = Progress(4)
    quiet.finish()
    quiet.finish("a run")
    assert capsys.readouterr().out == "a run\n"
    assert quiet.done == 2


def test_progress_on_a_terminal_is_a_bar_below_the_lines(terminal):
    screen = terminal()
    with Progress(2) as progress:
        progress.step(1, 2)
        progress.finish("the first [run]")
        progress.finish("the second")
    said = screen.getvalue()
    assert "the first [run]\n" in said
    assert "2.00 of 2 runs" in said
    assert said.endswith("\n\x1b[?25h"), "the cursor is hidden"
    assert sys.stdout is screen, "the bar was left in place of the output"


@pytest.mark.parametrize(("seconds", "text"), [(89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")])
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text
