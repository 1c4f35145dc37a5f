"""The table of one experiment: a row for each arm and setting, with notes on its columns and the origin of its runs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from crbg.data.metrics import ACCURACY
from crbg.experiments.config import Config, Experiment
from crbg.report.records_table import metric_of, specs, values
from crbg.report.stats import paired
from crbg.report.tables.markup import booktabs, interval, mean_of, percent, pipe
from crbg.search.roles import CHANGED_ROLES

LATEX = (
    "arm",
    "setting",
    "sparsity %",
    "bytes",
    "units closed %",
    *("binary %", "untrained %", "mean %", "reinit %"),
    *("binary", "untrained", "mean", "reinit"),
    "n",
)
READINGS = ("binary", "exact", "half", "mean", "untrained")
CONTROLS = ("reinit", "shuffle", "invert")
OPTIONAL = (  # columns that are omitted if they are empty in every row
    *("setting", "units closed %", "weights cut %", "silent units", "trained", "fractional %"),
    *("not recalibrated %", "recalibrated %", "exact images %"),
    *(f"{r} %" for r in READINGS[1:]),
)
_MEASURED = (*READINGS, *CONTROLS, "not recalibrated", "recalibrated", "exact images")
_BARE = {f"{name} %": name for name in _MEASURED}  # names of columns if the metric is not in %
NOTES = {  # explanations of columns, printed if the table has the column
    "binary %": (
        "`binary`: the ticket, a binary mask on untrained weights (mu > 1/2 for gates whose density is within 2 % of "
        "the target, otherwise the top k of mu; all weights if they were trained without a mask)."
    ),
    "bytes": (
        "`bytes`: size of the file of the ticket with its packed mask; for trained networks, the size of the packed "
        "mask, the weights, the scales and the biases, without names and shapes."
    ),
    "exact %": "`exact`: the mask of the k gates with the largest mu.",
    "half %": "`half`: the mask mu > 1/2, at whatever density it has.",
    "mean %": "`mean`: real-valued gates, which are not a strong ticket.",
    "reinit %": (
        "Controls change one property of the ticket, without training: `reinit` draws fresh weights from the same "
        "distribution, `shuffle` permutes the mask within each layer, `invert` keeps the lowest scores."
    ),
    "missed": "`missed`: runs whose natural density (mu > 1/2) differs from the target by more than 2 %.",
    "not recalibrated %": "`not recalibrated`: the ticket with the batch norm statistics of the search.",
    "exact images %": "`exact images`: accuracy without the test images that were decoded from JPEG copies.",
}
WINNING = (
    "These are winning tickets: `binary` is the mask on weights that were trained under it, with the running "
    "statistics of that training; `recalibrated` estimates them again. `untrained` is the same mask on the weights for "
    "which it was found: the initial weights or those of the rewinding point. `search s` is the total time in seconds "
    "for a ticket, including its training and a shared warm-up."
)


def best_part(rows: pd.DataFrame) -> str:
    """Return the split of the headline numbers: `test` if these rows have test accuracies, otherwise `validation`."""
    return "test" if (rows.part == "test").any() else "validation"


def headline(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Select an experiment's rows for binary masks, on the split that its headline numbers are reported for."""
    mine = rows[(rows.experiment == experiment) & (rows.reading == "binary")]
    return mine[mine.part == best_part(mine)]


def main_table(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Return one row for each arm and setting: mean ± 95 % half-width of each reading, controls, n, seconds.

    A reading is a way to turn gates into a mask (docs/vocabulary.md). Columns that are empty in this experiment (no
    settings, no unit gates, no silent units) are omitted.
    """
    mine = rows[rows.experiment == experiment]
    mine = mine[mine.part == best_part(mine)]
    table = pd.DataFrame([_line(arm, setting, group) for arm, setting, group in specs(mine)])
    empty = [c for c in OPTIONAL if c in table and not table[c].any()]
    if "half %" in table and ((table["half %"] == "") | (table["half %"] == table["binary %"])).all():
        empty.append("half %")
    if not table["bytes"].all():  # some records do not contain it
        empty.append("bytes")
    if not any(table[f"{c} %"].any() for c in CONTROLS if f"{c} %" in table):
        empty += [f"{c} %" for c in CONTROLS]
    table = table.drop(columns=list(dict.fromkeys(empty)))
    return table if metric_of(mine) is ACCURACY else table.rename(columns=lambda c: _BARE.get(c, c))


def _line(arm: str, setting: str, group: pd.DataFrame) -> dict[str, str]:
    """Return one row of the main table."""
    binary, digits = group[group.reading == "binary"], metric_of(group).digits
    units = bool(binary.units.notna().all())
    line = {"arm": arm, "setting": setting, "sparsity %": percent(binary.density.mean())}
    line["bytes"] = f"{binary.bytes.mean():,.0f}" if binary.bytes.notna().all() else ""
    line["units closed %"] = percent(binary.units.astype(float).mean()) if units else ""
    line["weights cut %"] = percent(binary.effective.astype(float).mean()) if units else ""
    for reading in READINGS:
        picked = group[group.reading == reading].value.dropna()
        line[f"{reading} %"] = interval(list(picked), digits) if len(picked) else ""
    for name, column in (("not recalibrated %", "plain"), ("recalibrated %", "again"), ("exact images %", "clean")):
        line[name] = _mean(binary[column], f".{digits}f")
    soft = binary.fractional.dropna()
    line["fractional %"] = f"{100 * soft.mean():.1f}" if len(soft) else ""
    line["silent units"] = _mean(binary.silent, ".0f")
    line |= {f"{control} %": _mean(binary[control], f".{digits - 1}f") for control in CONTROLS}
    line["n"] = str(binary.seed.nunique())
    line["missed"] = str(int(binary.density_missed.fillna(False).astype(bool).sum()))
    line["search s"] = f"{binary.search_seconds.mean():.0f}"
    trained = str(binary.trained.iloc[0])
    line["trained"] = ("slopes" if "act" in trained else "weights") if trained else ""
    if (changed := str(binary.changed.iloc[0])) != "trained":
        line["trained"] = CHANGED_ROLES.get(changed, "")
    return line


def _mean(column: pd.Series[Any], form: str) -> str:
    """Format the mean of the known values; empty if none is known."""
    known = column.dropna()
    return f"{known.mean():{form}}" if len(known) else ""


def ablation_table(rows: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Return the table of an ablation: the main table with a column for the paired difference to the reference."""
    table = main_table(rows, experiment.name)
    table[f"difference to {experiment.against or 'the reference'} (paired)"] = differences(rows, experiment)
    return table


def differences(rows: pd.DataFrame, experiment: Experiment) -> list[str]:
    """Return each spec's paired difference from its arm in `against`, or from the first row of the same density."""
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
            d = paired(list(same.value_x), list(same.value_y)).difference
            form = f"+.{metric_of(group).digits}f"
            found.append(f"{d.mean:{form}} [{d.low:{form}}, {d.high:{form}}], n = {d.n}")
    return found


def markdown(table: pd.DataFrame, experiment: Experiment, config: Config, rows: pd.DataFrame) -> str:
    """Format a table as Markdown, with its title and the notes that explain it."""
    mine = rows[rows.experiment == experiment.name]
    head = "**A demonstration on a toy data set, not evidence for any claim.**\n\n" if config.demonstration else ""
    where = f"{', '.join(mine.model.unique())} on {', '.join(mine.data.unique())}"
    winning = (mine.reading == "untrained").any()
    present = {*table, *(f"{column} %" for column in table)}
    notes = [text for column, text in NOTES.items() if column in present and not (winning and column == "binary %")]
    notes += [WINNING] if winning else []
    notes += naive(mine) + unread(mine)
    said = f"{best_part(mine)} {metric_of(mine).title}, mean ± half-width of the 95 % t interval over n seeds"
    body = pipe(table.to_dict("records"))
    return f"{head}{experiment.about}: {where}, {said}.\n\n{body}\n\n{' '.join([*notes, origin(rows, experiment)])}\n"


def naive(mine: pd.DataFrame) -> list[str]:
    """List the naive predictors of the field and the best constant prediction in a sentence; empty without them."""
    seen, metric = mine[mine.part == best_part(mine)], metric_of(mine)
    found = {name: value for known in seen.naive.dropna()[:1] for name, value in known.items()}
    if not found:
        return []
    found["a constant"] = seen.constant.dropna().iloc[0]
    listed = ", ".join(f"{name.replace('_', ' ')} {value:.{metric.digits}f}" for name, value in found.items())
    better = "larger" if metric.larger_is_better else "smaller"
    return [f"Naive predictors on the same part: {listed}. A {better} value is better."]


def unread(mine: pd.DataFrame) -> list[str]:
    """List the runs without a test evaluation in a sentence; empty if there are none, or if no run has one."""
    binary = mine[mine.reading == "binary"]
    read = set(binary[binary.part == "test"].digest)
    waiting = binary[~binary.digest.isin(read)]
    if not read or waiting.empty:
        return []
    arms = waiting.groupby(["arm", "digest"], sort=False)
    listed = ", ".join(f"{arm} {mean_of(g)}" for (arm, _), g in arms)
    return [f"Measured on validation images only, and therefore not in the table: {listed}."]


def origin(rows: pd.DataFrame, experiment: Experiment) -> str:
    """Describe the origin of the numbers: new or recorded runs, dates, versions of methods, devices, revisions."""
    mine = rows[rows.experiment == experiment.name].drop_duplicates(["digest", "seed"])
    counts = ", ".join(f"{n} {o}" for o, n in mine.origin.value_counts().items())
    versions = sorted({f"{run.split('-')[0]} {version}" for run, version in zip(mine.run, mine.version, strict=True)})
    dates = sorted({mine.finished.min(), mine.finished.max()})
    devices, revisions = sorted(mine.device.unique()), sorted(mine.revision.unique())
    return copies(mine) + (
        f"Runs: {counts}; finished {' to '.join(dates)}. Methods and their versions: {', '.join(versions)}. "
        f"Device: {', '.join(devices)}. Revision: {', '.join(revisions)}."
    )


def copies(mine: pd.DataFrame) -> str:
    """Say how many images of the data set were decoded from JPEG copies; empty if there are none."""
    lossy = mine[mine.lossy > 0]
    if lossy.empty:
        return ""
    total, test = f"{lossy.lossy.max():.0f}", f"{lossy.lossy_test.max():.0f}"
    return f"{total} images of the data set ({test} of them test images) were decoded from JPEG copies. "


def latex(table: pd.DataFrame) -> str:
    """Format the columns that fit on a page as booktabs LaTeX; the Markdown table has all columns."""
    return booktabs(table[[c for c in table.columns if c in LATEX or c.startswith("difference")]])
