"""How figures name arms and fields."""

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
    """Name an arm in a figure: by its label, or else by its own name."""
    return labels.get(arm, arm.replace("_", " "))
