"""Values of all search objectives for winning tickets, measured before the tickets are trained."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from crbg.experiments import record_store
from crbg.experiments.config import Config, Experiment

TITLES = {
    "loss": "loss",
    "deltaloss": "Δ loss",
    "kl": "reverse KL",
    "forward_kl": "forward KL",
    "feature": "features",
    "grad": "gradients",
    "gradnorm": "− gradient norm",
}


def measured(config: Config, experiment: Experiment) -> pd.DataFrame:
    """Return the objectives of every ticket, one row for each run: inf if not finite, NaN if not measured."""
    out = []
    for c in experiment.cells:
        # A control starts from the ticket of the same search, so its objectives are those of the run without a control.
        if (c.spec.density or 1.0) >= 1.0 or getattr(c.spec.resolved(), "control", "none") != "none":
            continue
        run = record_store.find_run(config, c.spec, c.seed)
        if run and (values := (run.record.anatomy or {}).get("objectives")):
            known = {name: math.inf if value is None else value for name, value in values.items() if name in TITLES}
            out.append({"arm": c.arm, "density": c.spec.density} | known)
    return pd.DataFrame(out, columns=["arm", "density", *TITLES])


def objectives(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each objective over seeds, by arm and density. Lower is better for all objectives."""
    out = []
    for (arm, density), group in found.groupby(["arm", "density"], sort=False):
        line = {"arm": arm, "sparsity %": f"{100 * (1 - float(str(density))):.4g}"}
        for name, title in TITLES.items():
            values = group[name].astype(float)
            missing = "not measured" if values.isna().any() else "" if np.isfinite(values).all() else "not finite"
            line[title] = missing or f"{values.mean():.3g}"
        out.append(line | {"n": str(len(group))})
    return pd.DataFrame(out)
