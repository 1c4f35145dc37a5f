"""Values of all search objectives for winning tickets, measured before the tickets are trained."""

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
    """Return the objectives of every ticket, one row for each run; None marks a value that is not finite."""
    out = []
    for c in experiment.cells:
        # A control starts from the ticket of the same search, so its objectives are those of the run without a control.
        if (c.spec.density or 1.0) >= 1.0 or getattr(c.spec.resolved(), "control", "none") != "none":
            continue
        run = record_store.find_run(config, c.spec, c.seed)
        if run and (values := (run.record.anatomy or {}).get("objectives")):
            out.append({"arm": c.arm, "density": c.spec.density, **{name: values.get(name) for name in TITLES}})
    return pd.DataFrame(out)


def objectives(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each objective over seeds, by arm and density. Lower is better for all objectives."""
    out = []
    for (arm, density), group in found.groupby(["arm", "density"], sort=False):
        line = {"arm": arm, "sparsity %": f"{100 * (1 - float(str(density))):.4g}"}
        for name, title in TITLES.items():
            known = group[name].dropna().astype(float)
            line[title] = f"{known.mean():.3g}" if len(known) == len(group) else "not finite"
        out.append(line | {"n": str(len(group))})
    return pd.DataFrame(out)
