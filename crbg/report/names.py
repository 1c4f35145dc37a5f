"""Names of arms in the text and the tables of the paper, where the keys of the configuration would be unreadable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crbg import methods
from crbg.experiments.config import Config
from crbg.report.claims import Judgement
from crbg.report.tables.markup import tex


def readable(found: Sequence[Judgement], config: Config, ids: bool = False) -> list[Judgement]:
    """Return the judgements with the arms' names instead of their keys in the verdict and the evidence.

    Args:
        found: the judgements.
        config: the configuration, which names the arms.
        ids: also replace keys in the ids of contrasts, such as "crbg - edge_popup at density 0.1".
    """
    out = []
    for v in found:
        e = config.experiments.get(v.experiment)
        labels = e.labels if e else config.labels
        v = replace(v, verdict=in_words(v.verdict, labels), measured=in_words(v.measured, labels))
        out.append(replace(v, id=in_words(v.id, labels)) if ids and v.contrast else v)
    return out


def in_words(text: str, labels: Mapping[str, str]) -> str:
    """Replace the keys of arms in a text by their names: "cts_kl - imp" by "CTS (reverse KL) - iterative pruning".

    Keys that may be words of the text, such as `units`, are not replaced.
    """
    keys = [k for k in labels if "_" in k or k in methods.names() or k == labels[k].lower()]
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
