"""Tables in Markdown and LaTeX, and every number of the paper as a macro."""

from __future__ import annotations

import math

import pandas as pd
from tabulate import tabulate

from crbg.config import Config, Experiment
from crbg.report.tidy import values
from crbg.stats import paired, t_interval

READINGS = ("binary", "exact", "mean")
CONTROLS = ("reinit", "shuffle", "invert")
NOTE = (
    "`binary`: the ticket, a binary mask on untrained weights (mu > 1/2 for gates that landed within 2 % of the density asked for, "
    "the top k of mu otherwise). `exact`: the top k of mu. `mean`: real-valued gates, not a strong ticket. Controls keep the ticket "
    "and change one thing, without training: `reinit` fresh weights of the same law, `shuffle` positions within each layer, `invert` "
    "the lowest scores. `missed`: runs whose natural density (mu > 1/2) lies more than 2 % from the one asked for."
)


def best_part(rows: pd.DataFrame) -> str:
    """Say which part the headline numbers come from: test where it was opened for these rows, else validation."""
    return "test" if (rows.part == "test").any() else "validation"


def main_table(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """One row for each arm and density: mean with 95 % half interval of each reading and control, n, seconds."""
    mine = rows[rows.experiment == experiment]
    mine = mine[mine.part == best_part(mine)]
    out = []
    for (arm, _), group in mine.groupby(["arm", "asked"], dropna=False, sort=False):
        binary = group[group.reading == "binary"]
        line = {"arm": arm, "sparsity %": f"{100 * (1 - binary.density.mean()):.1f}"}
        for reading in READINGS:
            picked = group[group.reading == reading].accuracy.dropna()
            line[f"{reading} %"] = interval(list(picked)) if len(picked) else ""
        for control in CONTROLS:
            known = binary[control].dropna()
            line[f"{control} %"] = f"{known.mean():.1f}" if len(known) else ""
        line["n"] = str(binary.seed.nunique())
        line["missed"] = str(int(binary.density_missed.fillna(False).astype(bool).sum()))
        line["search s"] = f"{binary.search_seconds.mean():.0f}"
        out.append(line)
    return pd.DataFrame(out)


def ablation_table(rows: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Add to the table of an ablation the difference to the same arm of the experiment that it is compared with."""
    table = main_table(rows, experiment.name)
    if experiment.against is None:
        return table
    mine = rows[(rows.experiment == experiment.name)]
    found = []
    for arm, asked in mine[["arm", "asked"]].drop_duplicates().itertuples(index=False):
        pair = [values(rows, e, arm, None if pd.isna(asked) else asked, "validation") for e in (experiment.name, experiment.against)]
        same = pair[0].merge(pair[1], on=["seed", "draw", "order"])
        if same.empty:
            found.append("no pairs")
            continue
        d = paired(list(same.accuracy_x), list(same.accuracy_y)).difference
        found.append(f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}], n = {d.n}")
    table[f"difference to {experiment.against} (paired)"] = found
    return table


def interval(values: list[float]) -> str:
    """Write mean ± half of the 95 % t interval, or the single value with its n."""
    i = t_interval(values)
    return f"{i.mean:.2f} ± {i.half:.2f}" if math.isfinite(i.half) else f"{i.mean:.2f} (n = 1)"


def markdown(table: pd.DataFrame, experiment: Experiment, config: Config, rows: pd.DataFrame) -> str:
    """Write a table with what a reader needs to judge it."""
    mine = rows[rows.experiment == experiment.name]
    part = best_part(mine)
    origin = ", ".join(f"{n} {o}" for o, n in mine.drop_duplicates(["digest", "seed"]).origin.value_counts().items())
    head = "**A demonstration on a toy data set, not evidence for any claim.**\n\n" if config.demonstration else ""
    where = f"{', '.join(mine.model.unique())} on {', '.join(mine.data.unique())}"
    devices, revisions = ", ".join(sorted(mine.device.unique())), ", ".join(sorted(mine.revision.unique()))
    return (
        f"{head}{experiment.about}: {where}, accuracy on the {part} part, mean ± half of the 95 % t interval over n seeds.\n\n"
        + tabulate(table.to_dict("records"), headers="keys", tablefmt="pipe", disable_numparse=True)
        + f"\n\n{NOTE} Runs: {origin}. Device: {devices}. Revision: {revisions}.\n"
    )


def latex(table: pd.DataFrame) -> str:
    """Write the table as booktabs LaTeX."""
    plain = table.map(lambda v: str(v).replace("±", r"$\pm$").replace("_", r"\_"))
    plain.columns = [c.replace("%", r"\%").replace("_", r"\_") for c in plain.columns]
    body = tabulate(plain.to_dict("records"), headers="keys", tablefmt="latex_raw", disable_numparse=True)
    first, second, third = (r"\toprule", r"\midrule", r"\bottomrule")
    for rule in (first, second, third):
        body = body.replace(r"\hline", rule, 1)
    return body + "\n"


def numbers(rows: pd.DataFrame) -> str:
    r"""Define one macro for each headline number: \crbgnumber{experiment.arm.density.part}; an unknown key is an error."""
    lines = [
        "% value ± half 95 % interval (n seeds) [digest]; written by `crbg report`",
        r"\newcommand{\crbgnumber}[1]{\ifcsname crbg@#1\endcsname\csname crbg@#1\endcsname\else\errmessage{unknown number #1}\fi}",
    ]
    mine = rows[(rows.role == "main") & (rows.reading == "binary")]
    for (experiment, arm, _, part), g in mine.groupby(["experiment", "arm", "asked", "part"], dropna=False, sort=True):
        key = f"{experiment}.{arm}.{'none' if g.asked.isna().all() else f'{g.asked.iloc[0]:g}'}.{part}"
        text = interval(list(g.accuracy)).replace("±", r"\ensuremath{\pm}")
        lines.append(rf"\expandafter\def\csname crbg@{key}\endcsname{{{text}}} % n = {len(g)} [{', '.join(g.digest.unique())}]")
    return "\n".join(lines) + "\n"


def tuning_table(rows: pd.DataFrame) -> str:
    """List every tuning trial with its mean validation accuracy, so that a reader sees what the choice was made from."""
    mine = rows[(rows.role == "tune") & (rows.part == "validation") & (rows.reading == "binary")]
    if mine.empty:
        return "No tuning runs yet.\n"
    grouped = mine.groupby(["experiment", "arm", "asked", "run"], sort=False)
    table = grouped.agg(
        validation=("accuracy", "mean"), seeds=("seed", "nunique"), missed=("density_missed", lambda m: int(m.astype(bool).sum()))
    ).reset_index()
    table = table.sort_values(["experiment", "arm", "asked", "validation"], ascending=[True, True, True, False])
    table["validation"] = table.validation.map(lambda v: f"{v:.2f}")
    return tabulate(table.to_dict("records"), headers="keys", tablefmt="pipe", disable_numparse=True) + "\n"


def readme_table(experiment: Experiment, rows: pd.DataFrame) -> str:
    """Write the headline accuracies of an experiment: one line for each arm, one column for each sparsity."""
    mine = rows[(rows.experiment == experiment.name) & (rows.reading == "binary")]
    part = best_part(mine)
    mine = mine[mine.part == part]
    asked = sorted(mine.asked.dropna().unique(), reverse=True)
    out = []
    for arm, group in mine.groupby("arm", sort=False):
        if group.asked.isna().all():
            continue
        cells = {f"{100 * (1 - d):g} % sparse": _interval_or_blank(group[group.asked == d]) for d in asked}
        out.append({"arm": arm, **cells})
    flat = mine[mine.asked.isna()].groupby("arm", sort=False).accuracy.apply(lambda a: interval(list(a)))
    others = "; ".join(f"{arm} {text}" for arm, text in flat.items())
    where = f"{', '.join(mine.model.unique())} on {', '.join(mine.data.unique())}"
    head = f"{where}: {part} accuracy in % of binary tickets on untrained weights, mean ± half of the 95 % t interval"
    head += f", n = {mine.seed.nunique()} seeds."
    return f"{head}\n\n{tabulate(out, headers='keys', tablefmt='pipe', disable_numparse=True)}\n\nWithout a mask: {others}.\n"


def _interval_or_blank(group: pd.DataFrame) -> str:
    return interval(list(group.accuracy)) if len(group) else ""
