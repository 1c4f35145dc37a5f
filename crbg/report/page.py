"""One self-contained HTML page: a summary, then chapters with figures, folded tables, verdicts and trials."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from crbg.experiments.config import Config, Experiment
from crbg.report import tables
from crbg.report.claims import Verdict

TEMPLATES = Path(__file__).parent / "templates"
# how an experiment's name begins: its chapter, to which the data of its runs are added; the first that fits counts
CHAPTERS = (
    (("lenet_winning", "lenet_worlds", "cts_", "deep_cts", "winning"), "winning", "Winning tickets"),
    (("lenet_",), "lenet", "LeNet-300-100"),
    (("conv2_", "conv4_", "cifar_", "deep"), "deep", "Convolutional networks and transformers"),
)
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "handwritten digits"}
GREEK = {"sigma": "σ", "Delta": "Δ", "alpha": "α", "lambda": "λ", "mu": "μ"}
VERDICTS = (  # how a verdict's word begins: how it is coloured
    (("reproduced", "exceeded", "met"), "good"),
    (("not reproduced", "missed"), "bad"),
    (("not run", "not testable"), "none"),
)
VIEWS = {  # what a figure shows, by its experiment's view; "" is accuracy against sparsity
    "dots": "Accuracy of each arm",
    "lines": "Accuracy along the setting that varies",
    "width": "Test error by width of the network, and what is lost against dense training",
    "penalties": "Accuracy and sparsity under each penalty",
    "cost": "Accuracy against the cost of the search",
    "methods": "Accuracy of each method, one panel for each sparsity",
    "winners": "Accuracy of tickets after training under their masks, against sparsity",
}
LARGEST = 300_000  # characters from which on a figure is embedded as PNG
WIDE = 400  # points of width from which on a figure takes the whole page


@dataclass(frozen=True)
class Section:
    """An experiment with its table, its figure's path without suffix, where its numbers come from, and further tables by caption."""

    experiment: Experiment
    table: pd.DataFrame
    figure: Path
    origin: str
    beside: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A further figure of an experiment, by its path without suffix; `ticket` where it shows one ticket's inside."""

    experiment: str
    caption: str
    figure: Path
    ticket: bool = False


def html(
    config: Config,
    sections: Sequence[Section],
    verdicts: Sequence[Verdict],
    rows: pd.DataFrame,
    pictures: Sequence[Picture],
    beside: pd.DataFrame,
    missing: Mapping[str, int],
) -> str:
    """Put everything on one page; figures are embedded, nothing is fetched, and without scripts everything is there too."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = _Figures()
    judged = [] if config.demonstration else list(verdicts)
    shown = key(s.experiment for s in sections)
    trials = tables.tuning_trials(rows)
    counted = rows.drop_duplicates(["digest", "seed"])
    origin = counted.groupby(["experiment", "origin", "device", "revision"]).size().rename("runs").reset_index()
    environment.globals["number"] = lambda n, what: f"{n:,} {what}".replace(",", " ") + "s" * (n != 1)
    return environment.get_template("page.html.j2").render(
        demonstration=config.demonstration,
        summary=_summary(rows, shown, missing),
        key=next(
            (
                drawn.figure(s.figure, f"The key figure: {s.experiment.about}")
                for s in sections
                if s.experiment is shown
            ),
            None,
        ),
        counts=_counts(judged),
        chapters=_chapters(sections, rows, pictures, drawn),
        verdicts=_grouped(judged, rows),
        comparison=_table(beside),
        tickets=[
            (p.caption, drawn.figure(p.figure, f"The anatomy of a ticket: {p.caption}")) for p in pictures if p.ticket
        ],
        origin=_table(origin),
        tuning=[(name, _table(g.drop(columns="experiment"))) for name, g in trials.groupby("experiment")]
        if len(trials)
        else [],
    )


def key(experiments: Iterable[Experiment]) -> Experiment | None:
    """Choose the experiment that a summary shows: the first main one that compares methods, or the first main one, or any."""
    known = list(experiments)
    mains = [e for e in known if e.role == "main"]
    return next((e for e in mains if e.view == "methods"), next(iter(mains or known), None))


def chapter(experiment: str) -> tuple[str, str]:
    """Name the chapter of an experiment: an anchor, and words for people; one that no chapter takes is its own."""
    fitting = (c for c in CHAPTERS if experiment.startswith(c[0]))
    _, anchor, title = next(
        fitting, ((), f"of-{experiment}" if experiment else "other", experiment or "Without runs of their own")
    )
    return anchor, title


def _on(title: str, names: Iterable[str], rows: pd.DataFrame) -> str:
    """Add the data that the experiments of a chapter were run on to its title."""
    data = rows[rows.experiment.isin(list(names))].data.dropna().unique()
    return f"{title} on {_and([DATA.get(d, str(d)) for d in data])}" if len(data) else title


def label(arm: str, labels: Mapping[str, str]) -> str:
    """Name an arm as the figures do, in plain text."""
    return re.sub(r"\$\\(\w+)\$", lambda m: GREEK.get(m[1], m[1]), labels.get(arm, arm))


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _summary(rows: pd.DataFrame, shown: Experiment | None, missing: Mapping[str, int]) -> dict[str, Any]:
    """Count what was run, and take the best ticket of each method from the experiment of the key figure."""
    runs = rows.drop_duplicates(["digest", "seed"])
    dates = sorted(d for d in runs.finished.dropna().unique() if d)
    best = tables.best_tickets(rows, shown.name) if shown else pd.DataFrame()
    table = pd.DataFrame(
        [{"method": label(str(t.arm), shown.labels), "accuracy %": t.interval} for t in best.itertuples()]
        if shown and len(best)
        else []
    )
    part = tables.best_part(rows[rows.experiment == shown.name]) if shown else ""
    return {
        "runs": len(runs),
        "experiments": runs.experiment.nunique(),
        "data": _and([DATA.get(d, str(d)) for d in runs.data.dropna().unique()]),
        "dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "",
        "missing": sum(missing.values()),
        "waiting": len(missing),
        "shown": shown and {"name": shown.name, "about": _sentence(shown.about)},
        "best": _table(table),
        "part": part,
        "sparsity": f"{100 * (1 - best.density[0]):g}" if len(best) else "",
    }


def _counts(verdicts: Iterable[Verdict]) -> list[tuple[str, str, int]]:
    """Count the verdicts by their kind, the most telling kinds first: word, colour, number."""
    words = [_kind(v.verdict) for v in verdicts]
    order = {
        "reproduced": 0,
        "exceeded": 1,
        "met": 2,
        "met in the mean": 3,
        "not reproduced": 4,
        "missed": 5,
        "inconclusive": 6,
    }
    return [
        (w, _colour(w), words.count(w))
        for w in sorted(set(words), key=lambda w: (order.get(w, 7), _colour(w) == "none", w))
    ]


def _kind(word: str) -> str:
    """Put the verdicts that name an arm or data under one word."""
    return (
        "one is better" if word.endswith(" is better") else "not testable" if word.startswith("not testable") else word
    )


def _colour(word: str) -> str:
    return next((colour for starts, colour in VERDICTS if word.startswith(starts)), "open")


def _chapters(
    sections: Sequence[Section], rows: pd.DataFrame, pictures: Sequence[Picture], drawn: _Figures
) -> list[dict[str, Any]]:
    """Order the experiments by chapter: those of CHAPTERS as they stand there, then the others."""
    groups: dict[tuple[str, str], list[Section]] = {
        (anchor, title): [] for _, anchor, title in CHAPTERS[1:] + CHAPTERS[:1]
    }
    for s in sections:
        groups.setdefault(chapter(s.experiment.name), []).append(s)
    return [
        {
            "anchor": anchor,
            "title": _on(title, [s.experiment.name for s in mine], rows),
            "sections": [
                _section(s, [p for p in pictures if p.experiment == s.experiment.name and not p.ticket], drawn)
                for s in mine
            ],
        }
        for (anchor, title), mine in groups.items()
        if mine
    ]


def _section(s: Section, pictures: Sequence[Picture], drawn: _Figures) -> dict[str, Any]:
    e, part = s.experiment, "test set" if s.experiment.role == "main" else "validation only"
    return {
        "name": e.name,
        "about": _sentence(e.about),
        "part": part,
        "figure": drawn.figure(
            s.figure, f"{VIEWS.get(e.view, 'Accuracy against sparsity')}, {part}, means and 95 % intervals ({e.name})."
        ),
        "table": _table(s.table),
        "origin": s.origin,
        "beside": [(_sentence(caption), _table(table)) for caption, table in s.beside.items()],
        "pictures": [(p.caption, drawn.figure(p.figure, f"{p.caption} ({e.name})")) for p in pictures],
    }


def _grouped(verdicts: Sequence[Verdict], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Group verdicts by the chapter of the experiment that their rule names, in the order of the chapters."""
    groups: dict[tuple[str, str], list[Verdict]] = {
        (anchor, title): [] for _, anchor, title in CHAPTERS[1:] + CHAPTERS[:1]
    }
    for v in verdicts:
        groups.setdefault(chapter(v.experiment), []).append(v)
    return [
        {
            "anchor": f"verdicts-{anchor}",
            "title": _on(title, {v.experiment for v in mine}, rows),
            "counts": _counts(mine),
            "dated": any(v.declared for v in mine),
            "rows": [
                {
                    "verdict": v,
                    "kind": _kind(v.verdict),
                    "colour": _colour(v.verdict),
                    "reading": v.reading,
                }
                for v in mine
            ],
        }
        for (anchor, title), mine in groups.items()
        if mine
    ]


def _table(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": [str(c) for c in table.columns],
        "rows": [[str(v) for v in row] for row in table.itertuples(index=False)],
    }


class _Figures:
    """The figures of one page: each SVG's identifiers get a prefix of their own, and a large one becomes a PNG."""

    def __init__(self) -> None:
        self.count = 0

    def figure(self, path: Path, title: str) -> dict[str, Any]:
        """Take a figure by its path without suffix."""
        self.count += 1
        name = f"fig{self.count}"
        text = path.with_name(path.name + ".svg").read_text()
        width = re.search(r'viewBox="0 0 ([\d.]+) ', text)
        wide = width is not None and float(width[1]) > WIDE
        if len(text) > LARGEST:
            data = base64.b64encode(path.with_name(path.name + ".png").read_bytes()).decode()
            return {"id": name, "title": title, "wide": wide, "png": data, "svg": None}
        return {"id": name, "title": title, "wide": wide, "png": None, "svg": inline(text, name)}


def inline(text: str, name: str) -> Any:
    """Cut from an SVG file what only a file needs, and put a name before all its identifiers; returns markup for a template."""
    from markupsafe import Markup, escape

    head, body = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{escape(name)}-", body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace("<defs>\n</defs>", "").strip()
    return Markup(f'<svg {box[0] if box else ""} role="img" aria-labelledby="{escape(name)}">{body}')
