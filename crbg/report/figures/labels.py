"""Names of arms and fields in figures."""

from __future__ import annotations

from collections.abc import Mapping

Labels = Mapping[str, str]  # names of arms and penalties in figures

FIELDS = {
    "options.mu0": "initial gate $\\mu_0$",
    "scale": "range $\\alpha$ of the initial weights",
    "options.noise": "noise $\\sigma$ of the gates",
    "options.weight": "penalty weight $\\lambda$",
}
# Short names of fields in the settings of rows; fields that are not listed keep their names.
SHORT = {
    "noise": "$\\sigma$",
    "weight": "$\\lambda$",
    "scale": "$\\alpha$",
    "mu0": "$\\mu_0$",
    "lr": "rate",
    "search_lr": "rate",
    "begin": "open at the start",
    "control": "",
}


def label(arm: str, labels: Labels) -> str:
    """Return the name of an arm in figures: its label, or its key with spaces if it has none."""
    return labels.get(arm, arm.replace("_", " "))


def named(text: str) -> str:
    """Return a setting such as "search_lr 0.1, begin 0.5" with the short names of its fields."""
    parts = [part.partition(" ") for part in text.split(", ") if part]
    return ", ".join(f"{SHORT.get(field, field.replace('_', ' '))} {value}".strip() for field, _, value in parts)
