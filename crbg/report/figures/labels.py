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


def label(arm: str, labels: Labels) -> str:
    """Return the name of an arm in figures: its label, or its key with spaces if it has none."""
    return labels.get(arm, arm.replace("_", " "))
