"""The value of every search objective for winning tickets before they are trained."""

from __future__ import annotations

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
    """List the objectives of every ticket, one row for each run; None stands for a value that is not finite."""
    out = []
    for c in experiment.cells:
        found = record_store.find(config, c.spec, c.seed)
        values = found["record"].get("anatomy", {}).get("objectives") if found else None
        # A control keeps the ticket of the search, so its objectives would repeat those of the ticket without it.
        if values and getattr(c.spec.resolved(), "control", "none") == "none" and (c.spec.density or 1.0) < 1.0:
            out.append({"arm": c.arm, "density": c.spec.density, **{name: values.get(name) for name in TITLES}})
    return pd.DataFrame(out)


def objectives(found: pd.DataFrame) -> pd.DataFrame:
    """Give the objectives of each arm by density, means over seeds. All of them are minimised."""
    out = []
    for (arm, density), group in found.groupby(["arm", "density"], sort=False):
        line = {"arm": arm, "sparsity %": f"{100 * (1 - float(str(density))):.4g}"}
        for name, title in TITLES.items():
            known = group[name].dropna().astype(float)
            line[title] = f"{known.mean():.3g}" if len(known) == len(group) else "not finite"
        out.append(line | {"n": str(len(group))})
    return pd.DataFrame(out)
