"""Tables of all tuning trials, from which the settings were chosen."""

from __future__ import annotations

import pandas as pd

from crbg.report.tables.markup import pipe


def tuning_table(rows: pd.DataFrame) -> str:
    """Format all tuning trials as a Markdown table."""
    trials = tuning_trials(rows)
    return pipe(trials.to_dict("records")) + "\n" if len(trials) else "No tuning runs yet.\n"


def tuning_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """Return all tuning trials with their mean validation accuracy, the best of each arm and density first."""
    mine = rows[(rows.role == "tune") & (rows.part == "validation") & (rows.reading == "binary")]
    if mine.empty:
        return pd.DataFrame()
    grouped = mine.groupby(["experiment", "arm", "asked", "setting", "digest"], sort=False)
    table = grouped.agg(
        validation=("value", "mean"),
        seeds=("seed", "nunique"),
        missed=("density_missed", lambda m: int(m.astype(bool).sum())),
    ).reset_index()
    table = table.sort_values(["experiment", "arm", "asked", "validation"], ascending=[True, True, True, False])
    table["validation"] = table.validation.map(lambda v: f"{v:.2f}")
    return pd.DataFrame(table)
