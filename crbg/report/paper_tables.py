"""Tables that only the paper shows: ten verdicts, the width sweep, tuning effort, and what deep networks reached."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import pandas as pd

from crbg.experiments.config import Config, Experiment
from crbg.report.claims import Judgement
from crbg.report.documents import TELLING, short
from crbg.report.names import latex_name
from crbg.report.published import read_published
from crbg.report.records_table import by_width
from crbg.report.tables import best_part, headline, interval
from crbg.report.tables.markup import tex

COLUMNS = (0.33, 0.16, 0.43)  # widths of the columns of the verdicts, as fractions of the line
MISSING = "---"


def all_tables(rows: pd.DataFrame, verdicts: Sequence[Judgement], config: Config) -> Iterator[tuple[str, str]]:
    """Yield the name and the LaTeX text of each table.

    Args:
        rows: the tidy table of records.
        verdicts: judgements with readable names.
        config: the configuration.
    """
    yield "verdicts_short", telling(verdicts)
    yield "tuning_short", tuning(rows, config)
    yield "deep_short", deep(rows, config)
    yield "settings_short", settings(config)
    for name in ("lenet_width", "lenet_width_second"):
        if name in config.experiments and not headline(rows, name).empty:
            yield f"{name}_short", width(rows, config.experiments[name])


def telling(verdicts: Sequence[Judgement]) -> str:
    """Tabulate the most informative verdicts: published claim, verdict, evidence."""
    known = {v.id: v for v in verdicts}
    lines = [
        " & ".join(
            (
                f"{tex(v.quote.strip('“”'))} ({tex(_origin(v))})",
                tex(v.verdict),
                tex(short(v.measured)),
            )
        )
        for v in (known[name] for name in TELLING if name in known)
    ]
    widths = "".join(rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in COLUMNS)
    return _tabular(
        widths,
        ("claim (source)", "verdict", "measured"),
        [rf"\addlinespace[2pt] {i}. {line}" for i, line in enumerate(lines, 1)],
    )


def _origin(v: Judgement) -> str:
    """Name the source of a claim in a few words, and say if the sentence is not a quotation."""
    source = re.split("[,(]", v.source)[0].strip()
    return source if v.quote.startswith("“") else f"{source}, in our words"


def width(rows: pd.DataFrame, experiment: Experiment) -> str:
    """Tabulate the width sweep: the published accuracy at each number of weights beside the accuracy of each arm."""
    found = by_width(headline(rows, experiment.name))
    theirs: dict[float, list[float]] = {}
    for point in read_published().get("width", []):
        theirs.setdefault(point["weights"], []).append(point["accuracy"])
    lines = []
    for share in sorted({x for arm in found.values() for x in arm}, reverse=True):
        near = [v for weights, values in theirs.items() if abs(weights / share - 1) < 0.05 for v in values]
        cells = [tex(interval(arm[share])) if share in arm else MISSING for arm in found.values()]
        lines.append(" & ".join([f"{share:.1f}", ", ".join(f"{v:g}" for v in near) or MISSING, *cells]))
    arms = [latex_name(arm, experiment.labels) for arm in found]
    return _tabular("rr" + "r" * len(arms), (r"weights (\%)", "published", *arms), lines)


def tuning(rows: pd.DataFrame, config: Config) -> str:
    """Tabulate the tuning effort: for each experiment and arm the trials at each density, epochs, seeds."""
    trials = rows[(rows.role == "tune") & (rows.part == "validation") & (rows.reading == "binary")]
    lines = []
    for (name, arm), g in trials.groupby(["experiment", "arm"], sort=False):
        experiment = config.experiments[str(name)]
        by = g.groupby("asked", dropna=False).digest.nunique().sort_index(ascending=False)
        counts = "; ".join(
            f"{'free' if math.isnan(d) else f'{100 * (1 - d):g}'}: {n}"
            for d, n in zip(map(float, by.index), by, strict=True)
        )
        epochs = "--".join(f"{v:g}" for v in sorted({g.epochs.min(), g.epochs.max()}))
        cells = (tex(name), latex_name(str(arm), experiment.labels), counts, epochs, str(g.seed.nunique()))
        lines.append(" & ".join(cells))
    titles = ("experiment", "arm", r"sparsity (\%): trials", "epochs", "seeds")
    return _tabular(r"ll>{\raggedright\arraybackslash}p{0.36\linewidth}rr", titles, lines, "longtable")


def settings(config: Config) -> str:
    """Tabulate the settings of CRBG that were chosen on validation images, for the experiments of the main curve."""
    lines: dict[tuple[str, ...], list[float]] = {}
    for name in ("lenet_curve", "lenet_no_noise"):
        e = config.experiments.get(name)
        for cell in e.cells if e else ():
            if cell.spec.method == "crbg" and cell.spec.density is not None:
                o = cell.spec.resolved()
                values = (f"{cell.spec.scale:g}", f"{o.noise:g}", f"{o.lr:g}", f"{o.polish:g}", f"{o.firmness:g}")
                found = lines.setdefault((latex_name(cell.arm, e.labels if e else {}), *values), [])
                found += [cell.spec.density] if cell.spec.density not in found else []
    titles = ("arm", r"sparsity (\%)", r"$\alpha$", r"$\sigma$", "rate", "hard gates", r"$\varphi$")
    rows = [
        " & ".join([arm, ", ".join(f"{100 * (1 - d):.4g}" for d in densities), *values])
        for (arm, *values), densities in lines.items()
    ]
    return _tabular("llrrrrr", titles, rows)


def deep(rows: pd.DataFrame, config: Config) -> str:
    """Tabulate what the deep networks reached so far: the best setting of each arm and density, at N epochs."""
    mine = rows[rows.experiment.str.startswith("deep_") & (rows.reading == "binary")]
    lines = []
    for name, of_experiment in mine.groupby("experiment", sort=False):
        experiment = config.experiments[str(name)]
        for (arm, _), of_arm in of_experiment.groupby(["arm", "asked"], dropna=False, sort=False):
            part = best_part(of_arm)  # an arm may be measured on validation images only
            g = of_arm[of_arm.part == part]
            means = g.groupby("digest").value.mean()
            best = g[g.digest == means.idxmax()]
            sparsity = MISSING if best.asked.isna().all() else f"{100 * (1 - best.density.mean()):.1f}"
            kind = f"{part}, best of {len(means)} trials" if experiment.role == "tune" else part
            network = str(best.model.iloc[0]).removeprefix("timm:").replace("_", " ")
            cells = (network, latex_name(str(arm), experiment.labels), sparsity, tex(interval(list(best.value))))
            lines.append(" & ".join((*cells, kind, f"{best.epochs.iloc[0]:g}")))
    titles = ("network", "arm", r"sparsity (\%)", r"accuracy (\%)", "split", "epochs")
    return _tabular("llrrlr", titles, lines or [r"\multicolumn{6}{c}{no runs in this version}"])


def _tabular(columns: str, titles: Sequence[str], lines: Sequence[str], kind: str = "tabular") -> str:
    """Return a booktabs table; a `longtable` repeats its titles on every page."""
    head = [rf"\begin{{{kind}}}{{{columns}}}", r"\toprule", " & ".join(titles) + r" \\", r"\midrule"]
    head += [r"\endhead"] if kind == "longtable" else []
    return "\n".join([*head, *(f"{line} \\\\" for line in lines), r"\bottomrule", rf"\end{{{kind}}}"]) + "\n"
