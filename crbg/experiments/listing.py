"""The output of `crbg list`: experiments, methods, networks and data sets, in lines of at most 100 columns.

This module does not import torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from crbg import methods, models
from crbg.console import Table
from crbg.data.datasets import DATA, own
from crbg.experiments.config import Config, read_selected
from crbg.experiments.estimates import SIZES
from crbg.experiments.experiment import distinct

WIDTH = 98  # `crbg list` indents by 2
COLUMN = 38
# Families with arbitrarily many networks: the pattern of their names, and a description.
_OPEN = {
    "lenet": ("lenet-A-B-...", "fully connected, hidden layers of A, B, ... units"),
    "timm": ("timm:NAME", "any network of timm, adapted to the data set; some examples:"),
    "gcn": ("gcn-A-B-...", "graph convolutions, hidden layers of A, B, ... units; for graphs"),
    "gat": ("gat-UxH", "graph attention, H heads of U units; for graphs"),
    "tcn": ("tcn-CxL", "causal convolutions, L levels of C channels; for series"),
    "forecast": ("gru_forecast-A-..., lstm_...", "recurrent layers of A, ... units; for series"),
    "recurrent": ("lstm-A-..., gru-A-...", "recurrent layers of A, ... units; for text"),
    "gpt": ("gpt-LxW", "a transformer with L layers of width W; for text"),
}


def experiments(config: Config) -> Iterator[str]:
    """Yield the name, role, number of runs and description of each experiment."""
    for e in config.experiments.values():
        yield f"{e.name:24s} {e.role:8s} {len(distinct(e.cells)):5d} runs"
        if e.about:
            yield _wrap("    ", e.about)


def method_names() -> Iterator[str]:
    """Yield the name, summary and options of each method."""
    for name in methods.names():
        yield _wrap(f"{name:20s}  ", " ".join(str(methods.get(name).__doc__).split("\n\n")[0].split()))
        yield _wrap(" " * 22, _options(name))
    yield "`crbg list methods NAME` explains a method and its options."


def explain(name: str) -> str:
    """Return the docstrings of a method and of its options, and the defaults of the options."""
    method = methods.get(name)
    parts = [inspect.cleandoc(str(o.__doc__)) for o in (method, *method.Options.__mro__[:-1])]
    return "\n\n".join([*parts, _wrap("Defaults: ", _options(name))])


def _options(name: str) -> str:
    """Return the options of a method with their defaults."""
    return ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(methods.get(name).Options)) or "no options"


def networks() -> Iterator[str]:
    """Yield the networks of each family, with their numbers of weights and of multiply-adds per image."""
    for stem, pattern in models.families().items():
        known = [name for name in SIZES if re.fullmatch(pattern, name)]
        if stem in _OPEN:
            form, about = _OPEN[stem]
            yield _wrap(f"{form:{COLUMN}s}", about)
        elif not known:
            yield f"{stem:{COLUMN}s}names that match {pattern}"
        for name in known:
            yield f"{'  ' * (stem in _OPEN) + name:{COLUMN}s}{_size(name)}"
    yield _wrap(
        "", "Counts are for 28 x 28 grey images for lenet, and for 32 x 32 colour images for all others that have them."
    )


def _size(name: str) -> str:
    weights, products, built = SIZES[name]
    arguments = {"cifar": "  (stem: cifar)", None: ""}.get(built, f"  (patch_size: {built})")
    return f"{_short(weights):>6s} weights, {_short(products):>6s} multiply-adds{arguments}"


def data_sets(data_dir: str | None = None) -> Iterator[str]:
    """Yield each data set, including your own under the data root, with the shape of an input and its sizes."""
    for d in (*DATA.values(), *own(data_dir)):
        shape = " x ".join(map(str, d.shape))
        yield f"{d.name:20s}  {shape:12s}  {d.train} training, {d.validation} validation, {d.test} test {d.examples}"


def chosen(path: Path) -> Table:
    """Return a table of a file of chosen settings: numbers of arms, choices, trials and specs for the test set."""
    selected = read_selected(path)
    evaluate = selected.pop("evaluate", {})
    rows = []
    for name in dict.fromkeys((*selected, *evaluate)):
        arms = selected.get(name, {})
        choices = [choice for those in arms.values() for choice in those]
        specs = (len(evaluate.get(name, ())),) if evaluate else ()
        rows.append((name, len(arms), len(choices), sum(choice.get("trials", 0) for choice in choices), *specs))
    last = ("specs for the test set",) if evaluate else ()
    return Table(("experiment", "tuned arms", "choices", "trials", *last), rows)


def _wrap(head: str, text: str) -> str:
    """Append text to a heading; further lines are indented to the column where the text starts."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _short(count: float) -> str:
    """Format a count with three significant digits: 266 k, 1.47 M, 5.52 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
