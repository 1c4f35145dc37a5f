"""What there is to choose from, as lines of at most 100 columns: experiments, methods, networks, data sets.

Imports no torch.
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
from crbg.experiments.cells import distinct
from crbg.experiments.config import Config, read_selected
from crbg.experiments.estimates import SIZES

WIDTH = 98  # `crbg list` indents by 2
COLUMN = 38
# Families with unlimited names: how a name is formed, and what it builds.
_OPEN = {
    "lenet": ("lenet-A-B-...", "fully connected, hidden layers of A, B, ... units"),
    "timm": ("timm:NAME", "any network of timm, built for the images at hand; some examples:"),
}


def experiments(config: Config) -> Iterator[str]:
    """Name each experiment with its role, its number of runs and its purpose."""
    for e in config.experiments.values():
        yield f"{e.name:24s} {e.role:8s} {len(distinct(e.cells)):5d} runs"
        if e.about:
            yield _wrap("    ", e.about)


def method_names() -> Iterator[str]:
    """Name each method with what it is and its options."""
    for name in methods.names():
        method = methods.get(name)
        knobs = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(method.Options))
        yield _wrap(f"{name:20s}  ", " ".join(str(method.__doc__).split("\n\n")[0].split()))
        yield _wrap(" " * 22, knobs or "no options")


def explain(name: str) -> str:
    """Return what a method does and what its options mean, from its docstrings."""
    method = methods.get(name)
    return "\n\n".join(inspect.cleandoc(str(o.__doc__)) for o in (method, *method.Options.__mro__[:-1]))


def networks() -> Iterator[str]:
    """Name the networks of each family with their weights, and their multiply-adds for one image."""
    for stem, pattern in models.families().items():
        known = [name for name in SIZES if re.fullmatch(pattern, name)]
        if stem in _OPEN:
            form, about = _OPEN[stem]
            yield _wrap(f"{form:{COLUMN}s}", about)
        elif not known:
            yield f"{stem:{COLUMN}s}names that match {pattern}"
        for name in known:
            yield f"{'  ' * (stem in _OPEN) + name:{COLUMN}s}{_size(name)}"
    yield _wrap("", "Sizes are for lenet on 28 x 28 grey pixels, for all others on 32 x 32 colour pixels.")


def _size(name: str) -> str:
    weights, products, built = SIZES[name]
    arguments = {"cifar": "  (stem: cifar)", None: ""}.get(built, f"  (patch_size: {built})")
    return f"{_short(weights):>6s} weights, {_short(products):>6s} multiply-adds{arguments}"


def data_sets() -> Iterator[str]:
    """Name each data set with the shape of its images and the number in each part, also those under the data root."""
    for d in (*DATA.values(), *own()):
        shape = " x ".join(map(str, d.shape))
        yield f"{d.name:20s}  {shape:12s}  {d.train} training, {d.validation} validation, {d.test} test images"


def chosen(path: Path) -> Table:
    """Tabulate a file of chosen settings by experiment: arms, choices, trials, and specs open for the test set."""
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
    """Put text beside a name; lines that would be too long go on below, at the same column."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _short(count: float) -> str:
    """Write a count with three digits: 266 k, 1.47 M, 5.52 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
