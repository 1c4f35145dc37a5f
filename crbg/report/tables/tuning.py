"""Tables of all tuning trials, from which the settings were chosen."""

from __future__ import annotations

import pandas as pd

from crbg.data.metrics import ACCURACY, METRICS
from crbg.report.tables.markup import pipe


def tuning_table(rows: pd.DataFrame) -> str:
    """Format all tuning trials as a Markdown table."""
    trials = tuning_trials(rows)
    return pipe(trials.to_dict("records")) + "\n" if len(trials) else "No tuning runs yet.\n"


def tuning_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """Return all tuning trials with their mean on the validation part, the best of each arm and density first."""
    mine = rows[(rows.role == "tune") & (rows.part == "validation") & (rows.reading == "binary")]
    if mine.empty:
        return pd.DataFrame()
    keys = ["experiment", "arm", "asked", "setting", "digest", "metric"]
    grouped = mine.groupby(keys, sort=False, dropna=False)
    table = grouped.agg(
        validation=("value", "mean"),
        seeds=("seed", "nunique"),
        missed=("density_missed", lambda m: int(m.astype(bool).sum())),
    ).reset_index()
    metrics = [METRICS.get(str(key), ACCURACY) for key in table.pop("metric")]
    values = list(table.validation)
    table["better"] = [m.better(v) for m, v in zip(metrics, values, strict=True)]
    table["validation"] = [f"{v:.{m.digits}f}" for m, v in zip(metrics, values, strict=True)]
    table = table.sort_values(["experiment", "arm", "asked", "better"], ascending=[True, True, True, False])
    table["asked"] = ["" if pd.isna(d) else f"{d:g}" for d in table.asked]
    return pd.DataFrame(table.drop(columns="better"))
