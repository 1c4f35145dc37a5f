"""Short tables for the paper and the README: arms by sparsity, best tickets, published against measured values."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from crbg.data.metrics import ACCURACY
from crbg.experiments.config import Experiment
from crbg.report.claims import Comparison
from crbg.report.records_table import metric_of, specs, values
from crbg.report.rules.base import count
from crbg.report.tables.experiment import best_part, copies, headline
from crbg.report.tables.markup import booktabs, mean_of, percent, pipe


def by_sparsity(experiment: Experiment, rows: pd.DataFrame) -> list[dict[str, str]]:
    """Return one row for each arm that has a target density, with one column for each sparsity."""
    mine = headline(rows, experiment.name)
    asked = sorted(mine.asked.dropna().unique(), reverse=True)
    out = []
    for arm, group in mine.groupby("arm", sort=False):
        if not group.asked.isna().all():
            cells = {f"{percent(d, 'g')} %": group[group.asked == d] for d in asked}
            out.append({"arm": str(arm)} | {name: mean_of(g) if len(g) else "" for name, g in cells.items()})
    return out


def short_latex(experiment: Experiment, rows: pd.DataFrame) -> str:
    """Format the accuracies by arm and sparsity as booktabs LaTeX that fits the width of a page."""
    table = pd.DataFrame(by_sparsity(experiment, rows))
    return booktabs(table.assign(arm=[re.sub(r"[$\\]", "", experiment.label(str(a))) for a in table.arm]))


def readme_table(experiment: Experiment, rows: pd.DataFrame) -> str:
    """Format the headline accuracies of an experiment as Markdown: title, table, and the arms without a mask."""
    mine = headline(rows, experiment.name)
    flat = mine[mine.asked.isna()].groupby("arm", sort=False)
    others = [f"{arm} {mean_of(group)}" for arm, group in flat]
    metric = metric_of(mine)
    others += [f"{metric.constant} {v:.{metric.digits}f}" for v in mine.constant.dropna()[:1]]
    said = f"Without a mask: {'; '.join(others) or 'not run'}. {copies(rows[rows.experiment == experiment.name])}"
    link = f"[`{experiment.name}`](paper/tables/{experiment.name}.md)"
    body = pipe(by_sparsity(experiment, rows))
    return f"{link}, {_what(experiment, mine)}\n\n{body}\n\n{said.rstrip()}\n"


def _what(experiment: Experiment, mine: pd.DataFrame) -> str:
    """Describe the accuracies: network, data set, split, kind of ticket, interval, seeds."""
    counts = sorted(set(mine.groupby(["arm", "digest"]).seed.nunique()))
    seeds = f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") + " seeds"
    winning = experiment.view == "winners"
    kind = "winning tickets, trained under their masks," if winning else "binary tickets on untrained weights"
    where = f"{', '.join(mine.model.unique())} on {', '.join(mine.data.unique())}: {best_part(mine)} {_measure(mine)}"
    return f"{where} of {kind} by sparsity, mean ± half-width of the 95 % t interval, {seeds}."


def _measure(mine: pd.DataFrame) -> str:
    metric = metric_of(mine)
    return f"{metric.title} in %" if metric is ACCURACY else metric.title


def comparison(lines: Sequence[Comparison], rows: pd.DataFrame) -> pd.DataFrame:
    """Return published and measured values side by side, for the rows declared in paper/claims.yaml."""
    return pd.DataFrame([_compared(line, rows) for line in lines])


def _compared(line: Comparison, rows: pd.DataFrame) -> dict[str, str]:
    ours, sparsity, n, epochs, trained = "not run", "", "", "", ""
    if line.constant:
        known = rows[(rows.experiment == line.experiment) & (rows.part == "test")].constant.dropna()
        ours = f"{known.iloc[0]:.2f}" if len(known) else ours
    elif line.experiment:
        mine = values(rows, line.experiment, line.arm, line.density)
        if len(mine):
            ours, n, trained = mean_of(mine), str(len(mine)), "yes" if mine.trained.iloc[0] else "no"
            epochs = f"{mine.epochs.iloc[0]:g}"
            units = f"{percent(mine.units.astype(float).mean())} of the units" if mine.units.notna().all() else ""
            sparsity = units or percent(mine.density.mean())
            if missed := int(mine.density_missed.astype(bool).sum()):
                sparsity += f" ({count(missed, 'run')} did not reach it before the cut)"
    known_as = {"row": line.row, "published": line.published, "measured %": ours}
    return known_as | {"sparsity %": sparsity, "n": n, "epochs": epochs, "weights trained": trained}


def best_tickets(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Return the best ticket of each method, best first, at the density that most arms of an experiment share.

    The tickets of each arm and setting are compared by their mean accuracy over seeds. Columns: method, arm, value,
    interval, density.
    """
    mine = headline(rows, experiment)
    mine = mine[mine.asked.notna() & (mine.asked < 1)]
    if mine.empty:
        return pd.DataFrame(columns=["method", "arm", "value", "interval", "density"])
    shared = mine.groupby("asked").arm.nunique()
    mine = mine[mine.asked == shared[shared == shared.max()].index.min()]
    found = []
    for arm, _, group in specs(mine):
        mean = sum(group.value) / len(group)
        line = {"method": str(group.run.iloc[0]).split("-")[0], "arm": arm, "value": mean}
        found.append(line | {"interval": mean_of(group), "density": group.asked.iloc[0]})
    rising = not metric_of(mine).larger_is_better
    best = pd.DataFrame(found).sort_values("value", ascending=rising, kind="stable").drop_duplicates("method")
    return best.reset_index(drop=True)
