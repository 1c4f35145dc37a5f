"""The figure of the method: the gate, its relaxation and penalties, and the plan of the density controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from crbg.methods.crbg import Options
from crbg.report.figures.style import LEGEND, colour, figure, log_ticks

SIGMA = 0.5
DENSITIES = (0.5, 0.1)  # the initial and the target density in the figure


def method(path: Path) -> Path:
    """Draw three panels: values of the gate against mu, both penalties against mu, and the plan of a search."""
    with figure(path):
        _, (gate, penalty, plan) = plt.subplots(1, 3, figsize=(6.8, 2.2), layout="constrained")
        mu = np.linspace(-1, 2, 301)
        _gate(gate, mu)
        _penalties(penalty, mu)
        _plan(plan)
        for axes, letter in zip((gate, penalty, plan), "abc", strict=True):
            axes.set_title(f"({letter}) {axes.get_title()}")
    return path


def _gate(axes: Any, mu: np.ndarray) -> None:
    """Draw clip(mu, 0, 1), samples with noise, their mean, and the hard gate."""
    noise = np.random.default_rng(0).normal(0, SIGMA, len(mu))
    axes.plot(mu, np.clip(mu + noise, 0, 1), ".", color=colour(5), ms=2, label="samples of $z$")
    nodes = np.linspace(0.0005, 0.9995, 1000)
    mean = [np.clip(m + SIGMA * stats.norm.ppf(nodes), 0, 1).mean() for m in mu]
    axes.plot(mu, mean, color=colour(0), lw=1.2, label="mean of $z$")
    axes.plot(mu, np.clip(mu, 0, 1), "--", color=colour(2), lw=1.2, label="no noise")
    axes.plot(mu, mu > 0.5, "-.", color=colour(1), lw=1.2, label=r"hard, $1[\mu > 1/2]$")
    axes.set_title("gate")
    axes.set_xlabel(r"$\mu$")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncol=2, **LEGEND)


def _penalties(axes: Any, mu: np.ndarray) -> None:
    """Draw both penalties: the probability that a gate is open, and that it is undecided."""
    cdf = stats.norm.cdf
    axes.plot(mu, cdf(mu / SIGMA), color=colour(0), lw=1.2, label=r"sparse: $P(z > 0)$")
    undecided = cdf((1 - mu) / SIGMA) - cdf(-mu / SIGMA)
    axes.plot(mu, undecided, "--", color=colour(1), lw=1.2, label=r"decision: $P(0 < z < 1)$")
    axes.set_title("penalties")
    axes.set_xlabel(r"$\mu$")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), **LEGEND)


def _plan(axes: Any) -> None:
    """Draw the planned density, and the phases of the decision penalty and of the hard gates."""
    o, t = Options(), np.linspace(0, 1, 201)
    done = np.minimum(1, t / o.reach)
    axes.plot(t, 100 * DENSITIES[0] ** (1 - done) * DENSITIES[1] ** done, color=colour(0), lw=1.2)
    axes.set_yscale("log")
    axes.set_ylim(2, 100)
    log_ticks(axes.yaxis)
    axes.set_title("plan of a search")
    axes.set_xlabel("fraction of the search")
    axes.set_ylabel("planned density (%)")
    axes.axvline(o.reach, color="black", lw=0.6, ls=":")
    axes.text(o.reach + 0.02, 45, "target reached", fontsize=6.5)
    ramp = 2.3 * 2 ** np.clip((t - o.decide) / (1 - o.decide), 0, 1)
    axes.fill_between(t, 2.3, ramp, color=colour(1), lw=0, label="decision penalty, or hard gates (polishing)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.28), **LEGEND)
