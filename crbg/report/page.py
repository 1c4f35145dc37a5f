"""One self-contained HTML page: a summary, then chapters with figures, folded tables, verdicts and tuning trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from crbg.experiments.config import Config, Experiment
from crbg.experiments.experiment import Key
from crbg.report import tables
from crbg.report.chapters import ORDER, chapter, data_names, key, label, on_data, sentence
from crbg.report.claims import Judgement, kind_of
from crbg.report.records_table import metric_of
from crbg.report.svg import Figures

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = (  # prefixes of verdicts and their colour
    (("reproduced", "exceeded", "met"), "good"),
    (("not reproduced", "missed"), "bad"),
    (("not run", "not testable"), "none"),
)
# Kinds of verdicts, the most informative first.
KINDS = ("reproduced", "exceeded", "met", "met in the mean", "not reproduced", "missed", "inconclusive")
VIEWS = {  # title of a figure, by the `view` of its experiment
    "curve": "Accuracy against sparsity",
    "dots": "Accuracy of each arm",
    "lines": "Accuracy against the setting that varies",
    "width": "Test error by network width, and the accuracy gap to dense training",
    "penalties": "Accuracy and sparsity under each penalty",
    "cost": "Accuracy against the cost of the search",
    "methods": "Accuracy of each method, one panel for each sparsity",
    "bytes": "Accuracy against the size of the file",
    "representation": "Error against the width of the network",
    "winners": "Accuracy of tickets after training under their masks, against sparsity",
}


@dataclass(frozen=True)
class Section:
    """An experiment with its table and figure.

    figure: path without suffix. origin: text that describes the origin of the numbers. beside: additional tables.
    """

    experiment: Experiment
    table: pd.DataFrame
    figure: Path
    origin: str
    beside: dict[str, pd.DataFrame] = field(default_factory=dict)  # by caption


@dataclass(frozen=True)
class Picture:
    """An additional figure of an experiment.

    figure: path without suffix. ticket: whether the figure shows the structure of a single ticket.
    """

    experiment: str
    caption: str
    figure: Path
    ticket: bool = False


@dataclass(frozen=True)
class Content:
    """The content of the page. missing: the missing runs by experiment."""

    rows: pd.DataFrame
    sections: Sequence[Section] = ()
    verdicts: Sequence[Judgement] = ()
    pictures: Sequence[Picture] = ()
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)
    missing: Mapping[str, set[Key]] = field(default_factory=dict)


def html(config: Config, content: Content) -> str:
    """Return the page as HTML. It embeds all figures, loads no other files, and is complete without scripts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["number"] = lambda n, what: f"{n:,} {what}".replace(",", "\u202f") + "s" * (n != 1)
    rows, drawn = content.rows, Figures()
    judged = [] if config.demonstration else list(content.verdicts)
    chosen = key(s.experiment for s in content.sections)
    shown = next((s for s in content.sections if s.experiment is chosen), None)
    tickets = [p for p in content.pictures if p.ticket]
    trials = tables.tuning_trials(rows)
    return environment.get_template("page.html.j2").render(
        demonstration=config.demonstration,
        summary=_summary(rows, shown.experiment if shown else None, content.missing),
        key=shown and drawn.figure(shown.figure, f"The key figure: {shown.experiment.about}"),
        counts=_counts(judged),
        chapters=_chapters(content, drawn),
        verdicts=_grouped(judged, rows),
        comparison=_table(content.comparison),
        tickets=[(p.caption, drawn.figure(p.figure, f"The anatomy of a ticket: {p.caption}")) for p in tickets],
        origin=_table(_origin(rows)),
        tuning=_by_experiment(trials),
    )


def _summary(rows: pd.DataFrame, shown: Experiment | None, missing: Mapping[str, set[Key]]) -> dict[str, Any]:
    """Return the values of the summary: counts of runs, and the best ticket of each method in experiment `shown`.

    A run that several experiments share is counted once.
    """
    runs = rows.drop_duplicates(["digest", "seed"])
    dates = sorted(d for d in runs.finished.dropna().unique() if d)
    best = tables.best_tickets(rows, shown.name) if shown else pd.DataFrame()
    labels = shown.labels if shown else {}
    metric = metric_of(rows[rows.experiment == (shown.name if shown else "")])
    measured = f"{metric.title}{metric.unit}"
    lines = [{"method": label(str(t.arm), labels), measured: t.interval} for t in best.itertuples()]
    return {
        "runs": len(runs),
        "experiments": rows.experiment.nunique(),
        "data": data_names(runs.data.dropna().unique()),
        "dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "",
        "missing": len(set().union(*missing.values())),
        "waiting": len(missing),
        "shown": shown and {"name": shown.name, "about": sentence(shown.about)},
        "best": _table(pd.DataFrame(lines)),
        "part": tables.best_part(rows[rows.experiment == shown.name]) if shown else "",
        "sparsity": f"{100 * (1 - best.density[0]):g}" if len(best) else "",
    }


def _counts(found: Iterable[Judgement]) -> list[tuple[str, str, int]]:
    """Count the verdicts by kind, the most informative kinds first; each item is (word, colour, count)."""
    kinds = [_kind(v.verdict) for v in found]

    def rank(word: str) -> tuple[int, bool, str]:
        return KINDS.index(word) if word in KINDS else len(KINDS), _colour(word) == "none", word

    return [(word, _colour(word), kinds.count(word)) for word in sorted(set(kinds), key=rank)]


def _kind(word: str) -> str:
    """Return the kind of a verdict, such as "one is better" for every verdict that names the better arm."""
    if word.endswith(" is better"):
        return "one is better"
    return kind_of(word)


def _colour(word: str) -> str:
    return next((colour for starts, colour in COLOURS if word.startswith(starts)), "open")


def _chapters(content: Content, drawn: Figures) -> list[dict[str, Any]]:
    """Group the sections of the page by chapter."""
    groups: dict[tuple[str, str], list[Section]] = {known: [] for known in ORDER}
    for s in content.sections:
        groups.setdefault(chapter(s.experiment.name), []).append(s)
    return [
        {
            "anchor": anchor,
            "title": on_data(title, [s.experiment.name for s in mine], content.rows),
            "sections": [_section(s, content.pictures, drawn) for s in mine],
        }
        for (anchor, title), mine in groups.items()
        if mine
    ]


def _section(s: Section, pictures: Sequence[Picture], drawn: Figures) -> dict[str, Any]:
    e, part = s.experiment, "test set" if s.experiment.role == "main" else "validation only"
    measured = e.metric.title.capitalize()
    shown = VIEWS.get(e.view, VIEWS["curve"]).replace("Accuracy", measured, 1)
    title = f"{shown}, {part}, means and 95 % intervals ({e.name})."
    mine = [p for p in pictures if p.experiment == e.name and not p.ticket]
    return {
        "name": e.name,
        "about": sentence(e.about),
        "part": part,
        "figure": drawn.figure(s.figure, title),
        "table": _table(s.table),
        "origin": s.origin,
        "beside": [(sentence(caption), _table(table)) for caption, table in s.beside.items()],
        "pictures": [(p.caption, drawn.figure(p.figure, f"{p.caption} ({e.name})")) for p in mine],
    }


def _grouped(found: Sequence[Judgement], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Group the verdicts by the chapter of the experiment that their rule names."""
    groups: dict[tuple[str, str], list[Judgement]] = {known: [] for known in ORDER}
    for v in found:
        groups.setdefault(chapter(v.experiment), []).append(v)
    return [
        {
            "anchor": f"verdicts-{anchor}",
            "title": on_data(title, {v.experiment for v in mine}, rows),
            "counts": _counts(mine),
            "dated": any(v.declared for v in mine),
            "rows": [{"verdict": v, "kind": _kind(v.verdict), "colour": _colour(v.verdict)} for v in mine],
        }
        for (anchor, title), mine in groups.items()
        if mine
    ]


def _origin(rows: pd.DataFrame) -> pd.DataFrame:
    """Count the runs by experiment, origin, device and revision. A shared run counts for each of its experiments."""
    runs = rows.drop_duplicates(["experiment", "digest", "seed"])
    return runs.groupby(["experiment", "origin", "device", "revision"]).size().rename("runs").reset_index()


def _by_experiment(trials: pd.DataFrame) -> list[tuple[str, dict[str, Any]]]:
    """Split the tuning trials by experiment."""
    if trials.empty:
        return []
    return [(str(name), _table(g.drop(columns="experiment"))) for name, g in trials.groupby("experiment")]


def _table(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": [str(c) for c in table.columns],
        "rows": [[str(v) for v in row] for row in table.itertuples(index=False)],
    }
