"""The structure of the page: chapters of experiments, the key figure, plain-text names of data sets and arms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from crbg.experiments.config import Experiment
from crbg.report import figures

# For each chapter: prefixes of experiment names, anchor and title. An experiment belongs to the first chapter with a
# matching prefix.
CHAPTERS = (
    (
        ("lenet_winning", "lenet_worlds", "lenet_cts_", "lenet_sanity_", "cts_", "deep_cts", "winning"),
        "winning",
        "Winning tickets",
    ),
    (("lenet_",), "lenet", "LeNet-300-100"),
    (("conv2_", "conv4_", "cifar_", "deep"), "deep", "Convolutional networks and transformers"),
    (("cora_", "italy_", "sunspots_", "shakespeare_"), "kinds", "Graphs, time series and text"),
)
ORDER = [(anchor, title) for _, anchor, title in CHAPTERS[1:] + CHAPTERS[:1]]  # in the order of the page
DATA = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cora": "Cora",
    "italy_power": "days of electricity demand",
    "sunspots": "monthly sunspot numbers",
    "shakespeare": "Shakespeare",
    "digits": "handwritten digits",
}
GREEK = {"sigma": "σ", "Delta": "Δ", "alpha": "α", "lambda": "λ", "mu": "μ"}


def key(experiments: Iterable[Experiment]) -> Experiment | None:
    """Choose the experiment for the summary.

    The first main experiment that compares methods, else the first main experiment, else the first experiment.
    """
    known = list(experiments)
    mains = [e for e in known if e.role == "main"]
    return next((e for e in mains if e.view == "methods"), next(iter(mains or known), None))


def chapter(experiment: str) -> tuple[str, str]:
    """Return the anchor and title of an experiment's chapter; without a matching prefix, it gets its own chapter."""
    for starts, anchor, title in CHAPTERS:
        if experiment.startswith(starts):
            return anchor, title
    return (f"of-{experiment}", experiment) if experiment else ("other", "Not tied to an experiment")


def on_data(title: str, experiments: Iterable[str], rows: pd.DataFrame) -> str:
    """Return a chapter's title followed by the names of the data sets of its experiments."""
    found = rows[rows.experiment.isin(list(experiments))].data.dropna().unique()
    return f"{title} on {data_names(found)}" if len(found) else title


def data_names(found: Iterable[object]) -> str:
    """Return the plain-text names of data sets, joined into one phrase."""
    return words([DATA.get(str(d), str(d)) for d in found])


def label(arm: str, labels: figures.Labels) -> str:
    """Return the name that an arm has in figures, in plain text."""
    return re.sub(r"\$\\(\w+)\$", lambda m: GREEK.get(m[1], m[1]), figures.label(arm, labels))


def words(listed: Sequence[str]) -> str:
    """Join names into one phrase: a, b and c."""
    return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed)


def sentence(text: str) -> str:
    """Return the text with its first letter capitalised."""
    return text[:1].upper() + text[1:]
