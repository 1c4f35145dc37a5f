"""Tables in Markdown and LaTeX, and every number of the paper as a macro."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from crbg.experiments.config import Config, Experiment
from crbg.report.records_table import specs, values
from crbg.report.stats import paired, t_interval

LATEX = ("arm", "setting", "sparsity %", "units closed %", "binary %", "untrained %", "mean %", "reinit %", "n")
READINGS = ("binary", "exact", "half", "mean", "untrained")
CONTROLS = ("reinit", "shuffle", "invert")
NOTES = {  # what a column says, where a table has it
    "binary %": "`binary`: the ticket, a binary mask on untrained weights (mu > 1/2 for gates that landed within 2 % of the density asked "
    "for, the top k of mu otherwise; all weights where they were trained without a mask).",
    "exact %": "`exact`: the top k of mu.",
    "half %": "`half`: mu > 1/2, whatever its density.",
    "mean %": "`mean`: real-valued gates, not a strong ticket.",
    "reinit %": "Controls keep the ticket and change one thing, without training: `reinit` fresh weights of the same law, `shuffle` "
    "positions within each layer, `invert` the lowest scores.",
    "missed": "`missed`: runs whose natural density (mu > 1/2) lies more than 2 % from the one asked for.",
    "not recalibrated %": "`not recalibrated`: the ticket with the batch norm statistics that the search left.",
    "exact images %": "`exact images`: without the test images that come from JPEG copies.",
}
WINNING = (
    "These are winning tickets: `binary` is the mask on weights that were trained under it, with the running statistics of that training; "
    "`recalibrated` has them estimated again. `untrained` is the same mask on the weights on which it was drawn, initial ones or those of "
    "the rewinding point. `search s` is all that a ticket took, its own training and a shared warm-up included."
)


def best_part(rows: pd.DataFrame) -> str:
    """Say which part the headline numbers come from: test where it was opened for these rows, else validation."""
    return "test" if (rows.part == "test").any() else "validation"


def headline(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Pick the binary rows of an experiment, of the part its headline numbers come from."""
    mine = rows[(rows.experiment == experiment) & (rows.reading == "binary")]
    return mine[mine.part == best_part(mine)]


def main_table(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """One row for each arm and setting: mean with 95 % half interval of each reading and control, n, seconds.

    Columns that say nothing in this experiment (no settings, no unit gates, no silent units) are left out.
    """
    mine = rows[rows.experiment == experiment]
    mine = mine[mine.part == best_part(mine)]
    out = []
    for arm, setting, group in specs(mine):
        binary = group[group.reading == "binary"]
        line = {"arm": arm, "setting": setting, "sparsity %": f"{100 * (1 - binary.density.mean()):.1f}"}
        line["units closed %"] = (
            f"{100 * (1 - binary.units.astype(float).mean()):.1f}" if binary.units.notna().all() else ""
        )
        line["weights cut %"] = (
            f"{100 * (1 - binary.effective.astype(float).mean()):.1f}" if line["units closed %"] else ""
        )
        for reading in READINGS:
            picked = group[group.reading == reading].accuracy.dropna()
            line[f"{reading} %"] = interval(list(picked)) if len(picked) else ""
        for name, column in (("not recalibrated %", "plain"), ("recalibrated %", "again"), ("exact images %", "clean")):
            known = binary[column].dropna()
            line[name] = f"{known.mean():.2f}" if len(known) else ""
        soft = binary.fractional.dropna()
        line["fractional %"] = f"{100 * soft.mean():.1f}" if len(soft) else ""
        silent = binary.silent.dropna()
        line["silent units"] = f"{silent.mean():.0f}" if len(silent) else ""
        for control in CONTROLS:
            known = binary[control].dropna()
            line[f"{control} %"] = f"{known.mean():.1f}" if len(known) else ""
        line["n"] = str(binary.seed.nunique())
        line["missed"] = str(int(binary.density_missed.fillna(False).astype(bool).sum()))
        line["search s"] = f"{binary.search_seconds.mean():.0f}"
        line["trained"] = (
            ("slopes" if "act" in trained else "weights") if (trained := str(binary.trained.iloc[0])) else ""
        )
        line["trained"] = "weights redrawn" if bool(binary.redrawn.iloc[0]) else line["trained"]
        out.append(line)
    table = pd.DataFrame(out)
    optional = (
        "setting",
        "units closed %",
        "weights cut %",
        "silent units",
        "trained",
        "fractional %",
        "not recalibrated %",
        "recalibrated %",
        "exact images %",
        *(f"{r} %" for r in READINGS[1:]),
    )
    empty = [c for c in optional if c in table and not table[c].any()]
    if "half %" in table and ((table["half %"] == "") | (table["half %"] == table["binary %"])).all():
        empty.append("half %")
    if not any(table[f"{c} %"].any() for c in CONTROLS if f"{c} %" in table):
        empty += [f"{c} %" for c in CONTROLS]
    return table.drop(columns=empty)


def ablation_table(rows: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Add to the table of an ablation the paired difference to what it is compared with."""
    table = main_table(rows, experiment.name)
    table[f"difference to {experiment.against or 'the reference'} (paired)"] = differences(rows, experiment)
    return table


def differences(rows: pd.DataFrame, experiment: Experiment) -> list[str]:
    """Compare each spec with the same arm of the experiment named by `against`, or else with the first row of the same density."""
    mine = rows[(rows.experiment == experiment.name) & (rows.part == "validation") & (rows.reading == "binary")]
    first: dict[float, pd.DataFrame] = {}
    found = []
    for arm, _, group in specs(mine):
        asked = group.asked.iloc[0]
        if experiment.against is not None:
            other = values(rows, experiment.against, arm, None if pd.isna(asked) else asked, "validation")
        else:
            other = first.setdefault(-1.0 if pd.isna(asked) else asked, group)
        same = group.merge(other, on=["seed", "draw", "order"])
        if other is group:
            found.append("reference")
        elif same.empty:
            found.append("no pairs")
        else:
            d = paired(list(same.accuracy_x), list(same.accuracy_y)).difference
            found.append(f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}], n = {d.n}")
    return found


def comparison(lines: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> pd.DataFrame:
    """Set what was published beside what was measured, row by row of the comparison that the claims file declares."""
    out = []
    for line in lines:
        ours, sparsity, n, trained = "not run", "", "", ""
        if line.get("constant"):
            known = rows[(rows.experiment == line["experiment"]) & (rows.part == "test")].constant.dropna()
            ours = f"{known.iloc[0]:.2f}" if len(known) else ours
        elif "experiment" in line:
            mine = values(rows, line["experiment"], line["arm"], line["density"])
            if len(mine):
                ours, n = interval(list(mine.accuracy)), str(len(mine))
                closed = (
                    f"{100 * (1 - mine.units.astype(float).mean()):.1f} of the units"
                    if mine.units.notna().all()
                    else ""
                )
                sparsity = closed or f"{100 * (1 - mine.density.mean()):.1f}"
                if missed := int(mine.density_missed.astype(bool).sum()):
                    sparsity += f", missed by {missed} and cut"
                trained = "yes" if mine.trained.iloc[0] else "no"
        out.append({"row": line["row"], "published": line["published"], "measured %": ours, "sparsity %": sparsity, "n": n,
                    "weights trained": trained})  # fmt: skip
    return pd.DataFrame(out)


def interval(values: list[float]) -> str:
    """Write mean ± half of the 95 % t interval; for one or two values, whose interval says nothing, the mean with n."""
    i = t_interval(values)
    return f"{i.mean:.2f} ± {i.half:.2f}" if i.n > 2 else f"{i.mean:.2f} (n = {i.n})"


def markdown(table: pd.DataFrame, experiment: Experiment, config: Config, rows: pd.DataFrame) -> str:
    """Write a table with what a reader needs to judge it."""
    mine = rows[rows.experiment == experiment.name]
    part = best_part(mine)
    head = "**A demonstration on a toy data set, not evidence for any claim.**\n\n" if config.demonstration else ""
    where = f"{', '.join(mine.model.unique())} on {', '.join(mine.data.unique())}"
    winning = (mine.reading == "untrained").any()
    notes = [text for column, text in NOTES.items() if column in table and not (winning and column == "binary %")]
    return (
        f"{head}{experiment.about}: {where}, accuracy on the {part} part, mean ± half of the 95 % t interval over n seeds.\n\n"
        + pipe(table.to_dict("records"))
        + f"\n\n{' '.join([*notes, *([WINNING] if winning else []), origin(rows, experiment)])}\n"
    )


def origin(rows: pd.DataFrame, experiment: Experiment) -> str:
    """Say where the numbers of an experiment come from: this run or records, when, on what, by which versions and revisions."""
    mine = rows[rows.experiment == experiment.name].drop_duplicates(["digest", "seed"])
    counts = ", ".join(f"{n} {o}" for o, n in mine.origin.value_counts().items())
    versions = sorted({f"{run.split('-')[0]} {version}" for run, version in zip(mine.run, mine.version, strict=True)})
    dates = sorted({mine.finished.min(), mine.finished.max()})
    devices, revisions = sorted(mine.device.unique()), sorted(mine.revision.unique())
    return copies(mine) + (
        f"Runs: {counts}; finished {' to '.join(dates)}. Methods and their versions: {', '.join(versions)}. "
        f"Device: {', '.join(devices)}. Revision: {', '.join(revisions)}."
    )


def pipe(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Write rows as a Markdown table."""
    return tabulate([dict(r) for r in rows], headers="keys", tablefmt="pipe", disable_numparse=True)


def latex(table: pd.DataFrame) -> str:
    """Write the columns of a table that fit a page as booktabs LaTeX; the Markdown table has them all."""
    shown = [c for c in table.columns if c in LATEX or c.startswith("difference")]
    return booktabs(table[shown])


def booktabs(table: pd.DataFrame) -> str:
    """Write a whole table as booktabs LaTeX."""
    plain = table.map(tex)
    plain.columns = [tex(c) for c in plain.columns]
    body = tabulate(plain.to_dict("records"), headers="keys", tablefmt="latex_raw", disable_numparse=True)
    first, second, third = (r"\toprule", r"\midrule", r"\bottomrule")
    for rule in (first, second, third):
        body = body.replace(r"\hline", rule, 1)
    return body + "\n"


def tex(value: object) -> str:
    """Escape plain text for LaTeX."""
    text = re.sub(r"([%&#_$])", r"\\\1", str(value))
    return (
        text.replace("±", r"$\pm$")
        .replace("<", r"$<$")
        .replace(">", r"$>$")
        .replace("^", r"\^{}")
        .replace("~", r"\~{}")
    )


def tuning_table(rows: pd.DataFrame) -> str:
    """Write every tuning trial as Markdown."""
    trials = tuning_trials(rows)
    return pipe(trials.to_dict("records")) + "\n" if len(trials) else "No tuning runs yet.\n"


def tuning_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """List every tuning trial with its mean validation accuracy, so that a reader sees what the choice was made from."""
    mine = rows[(rows.role == "tune") & (rows.part == "validation") & (rows.reading == "binary")]
    if mine.empty:
        return pd.DataFrame()
    grouped = mine.groupby(["experiment", "arm", "asked", "setting", "digest"], sort=False)
    table = grouped.agg(
        validation=("accuracy", "mean"),
        seeds=("seed", "nunique"),
        missed=("density_missed", lambda m: int(m.astype(bool).sum())),
    ).reset_index()
    table = table.sort_values(["experiment", "arm", "asked", "validation"], ascending=[True, True, True, False])
    table["validation"] = table.validation.map(lambda v: f"{v:.2f}")
    return pd.DataFrame(table)


def best_tickets(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Give the best ticket of each method of an experiment at the density that most of its arms share, the best method first.

    A ticket is an arm with its setting, its accuracy the mean over seeds; columns: method, arm, accuracy, interval,
    density.
    """
    mine = headline(rows, experiment)
    mine = mine[mine.asked.notna() & (mine.asked < 1)]
    if mine.empty:
        return pd.DataFrame(columns=["method", "arm", "accuracy", "interval", "density"])
    shared = mine.groupby("asked").arm.nunique()
    mine = mine[mine.asked == shared[shared == shared.max()].index.min()]
    found = []
    for arm, _, group in specs(mine):
        accuracy = list(group.accuracy)
        line = {"method": str(group.run.iloc[0]).split("-")[0], "arm": arm, "accuracy": sum(accuracy) / len(accuracy)}
        found.append(line | {"interval": interval(accuracy), "density": group.asked.iloc[0]})
    best = pd.DataFrame(found).sort_values("accuracy", ascending=False, kind="stable").drop_duplicates("method")
    return best.reset_index(drop=True)


def _short(experiment: Experiment, rows: pd.DataFrame) -> tuple[list[dict[str, str]], str, str]:
    """One line for each arm with one cell for each sparsity, what stands without a mask, and what it was measured on."""
    mine = headline(rows, experiment.name)
    asked = sorted(mine.asked.dropna().unique(), reverse=True)
    out = []
    for arm, group in mine.groupby("arm", sort=False):
        if not group.asked.isna().all():
            out.append(
                {"arm": str(arm)} | {f"{100 * (1 - d):g} %": _interval_or_blank(group[group.asked == d]) for d in asked}
            )
    flat = mine[mine.asked.isna()].groupby("arm", sort=False).accuracy.apply(lambda a: interval(list(a)))
    others = [f"{arm} {text}" for arm, text in flat.items()] + [
        f"the commonest class {v:.2f}" for v in mine.constant.dropna()[:1]
    ]
    counts = sorted(set(mine.groupby(["arm", "digest"]).seed.nunique()))
    seeds = f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") + " seeds"
    where = f"{', '.join(mine.model.unique())} on {', '.join(mine.data.unique())}: {best_part(mine)} accuracy in %"
    kind = (
        "winning tickets, trained under their masks,"
        if experiment.view == "winners"
        else "binary tickets on untrained weights"
    )
    return (
        out,
        "; ".join(others),
        f"{where} of {kind} by sparsity, mean ± half of the 95 % t interval, {seeds}.",
    )


def readme_table(experiment: Experiment, rows: pd.DataFrame) -> str:
    """Write the headline accuracies of an experiment: one line for each arm, one column for each sparsity."""
    lines, others, head = _short(experiment, rows)
    said = f"Without a mask: {others or 'not run'}. {copies(rows[rows.experiment == experiment.name])}".rstrip()
    return f"[`{experiment.name}`](paper/tables/{experiment.name}.md), {head}\n\n{pipe(lines)}\n\n{said}\n"


def copies(mine: pd.DataFrame) -> str:
    """Say how many images of the data are decoded JPEG copies; nothing where none is."""
    lossy = mine[mine.lossy > 0]
    if lossy.empty:
        return ""
    return f"{lossy.lossy.max():.0f} images of the data ({lossy.lossy_test.max():.0f} of the test part) come from JPEG copies. "


def short_latex(experiment: Experiment, rows: pd.DataFrame) -> str:
    """Write the same as booktabs LaTeX, for the width of a page."""
    lines, _, _ = _short(experiment, rows)
    return booktabs(pd.DataFrame(lines))


def _interval_or_blank(group: pd.DataFrame) -> str:
    return interval(list(group.accuracy)) if len(group) else ""
