"""How good each winning ticket is, before it is trained, at what other searches minimise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from crbg import store
from crbg.config import Config, Experiment

TITLES = {
    "loss": "loss", "deltaloss": "Δ loss", "kl": "reverse KL", "forward_kl": "forward KL", "feature": "features",
    "grad": "gradients", "gradnorm": "− gradient norm",
}  # fmt: skip


def objectives(config: Config, experiment: Experiment) -> pd.DataFrame:
    """Give each arm's objectives by density, means over seeds, all to be minimised; empty where no run measured them."""
    seen: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for c in experiment.cells:
        found = store.find(config, c.spec, c.seed)
        values = found["record"].get("anatomy", {}).get("objectives") if found else None
        # A control keeps the ticket that was drawn, so its objectives are those of the ticket without it.
        if values and getattr(c.spec.resolved(), "control", "none") == "none" and (c.spec.density or 1.0) < 1.0:
            seen.setdefault((c.arm, c.spec.density or 1.0), []).append(values)
    out = []
    for (arm, density), group in seen.items():
        line = {"arm": arm, "sparsity %": f"{100 * (1 - density):.4g}"}
        for name, title in TITLES.items():
            known = [float(v[name]) for v in group if v.get(name) is not None]
            line[title] = f"{sum(known) / len(known):.3g}" if len(known) == len(group) else "not finite"
        out.append(line | {"n": str(len(group))})
    return pd.DataFrame(out)
