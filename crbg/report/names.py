"""Names of arms in the text and the tables of the paper, where the keys of the configuration would be unreadable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crbg import methods
from crbg.experiments.config import Config
from crbg.report.claims import Judgement
from crbg.report.tables.markup import tex


def readable(found: Sequence[Judgement], config: Config) -> list[Judgement]:
    """Return the judgements with the arms' names instead of their keys in the verdict and the evidence."""
    out = []
    for v in found:
        e = config.experiments.get(v.experiment)
        labels = e.labels if e else config.labels
        out.append(replace(v, verdict=in_words(v.verdict, labels), measured=in_words(v.measured, labels)))
    return out


def in_words(text: str, labels: Mapping[str, str]) -> str:
    """Replace the keys of arms in a text by their names: "cts_kl - imp" by "CTS (reverse KL) - iterative pruning".

    Only keys with an underscore and names of methods are replaced. Other keys, such as `units`, may be words.
    """
    keys = [k for k in labels if "_" in k or k in methods.names()]
    pattern = "|".join(map(re.escape, sorted(keys, key=len, reverse=True)))
    return (
        re.sub(rf"(?<![\w*]){'(?:' + pattern + ')'}(?![\w*])", lambda m: _inline(labels[m[0]]), text) if keys else text
    )


def _inline(label: str) -> str:
    """Return "CRBG (polished)" for the label "CRBG, polished", because texts list arms between commas."""
    first, comma, rest = label.partition(", ")
    return f"{first} ({rest})" if comma and "(" not in label else label


def latex_name(arm: str, labels: Mapping[str, str]) -> str:
    """Return an arm's name for LaTeX; formulas between dollar signs stay as they are."""
    parts = re.split(r"(\$[^$]*\$)", labels.get(arm, arm.replace("_", " ")))
    return "".join(part if part.startswith("$") else tex(part) for part in parts)
