"""How the page is divided: chapters of experiments, the key figure, names of data and arms in plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from crbg.experiments.config import Experiment
from crbg.report import figures

# How the name of an experiment begins, an anchor and a title. The first chapter that fits counts.
CHAPTERS = (
    (("lenet_winning", "lenet_worlds", "cts_", "deep_cts", "winning"), "winning", "Winning tickets"),
    (("lenet_",), "lenet", "LeNet-300-100"),
    (("conv2_", "conv4_", "cifar_", "deep"), "deep", "Convolutional networks and transformers"),
)
ORDER = [(anchor, title) for _, anchor, title in CHAPTERS[1:] + CHAPTERS[:1]]  # as they stand on the page
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "handwritten digits"}
GREEK = {"sigma": "σ", "Delta": "Δ", "alpha": "α", "lambda": "λ", "mu": "μ"}


def key(experiments: Iterable[Experiment]) -> Experiment | None:
    """Choose the experiment for the summary: the first main one that compares methods, else the first main one."""
    known = list(experiments)
    mains = [e for e in known if e.role == "main"]
    return next((e for e in mains if e.view == "methods"), next(iter(mains or known), None))


def chapter(experiment: str) -> tuple[str, str]:
    """Give the anchor and the title of an experiment's chapter; an experiment outside CHAPTERS has its own."""
    for starts, anchor, title in CHAPTERS:
        if experiment.startswith(starts):
            return anchor, title
    return (f"of-{experiment}", experiment) if experiment else ("other", "Without runs of their own")


def on_data(title: str, experiments: Iterable[str], rows: pd.DataFrame) -> str:
    """Add the data that the experiments of a chapter were run on to its title."""
    found = rows[rows.experiment.isin(list(experiments))].data.dropna().unique()
    return f"{title} on {data_names(found)}" if len(found) else title


def data_names(found: Iterable[object]) -> str:
    """Name data sets in plain text."""
    return words([DATA.get(str(d), str(d)) for d in found])


def label(arm: str, labels: figures.Labels) -> str:
    """Name an arm as the figures do, in plain text."""
    return re.sub(r"\$\\(\w+)\$", lambda m: GREEK.get(m[1], m[1]), figures.label(arm, labels))


def words(listed: Sequence[str]) -> str:
    """Write a list as words: a, b and c."""
    return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed)


def sentence(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]
