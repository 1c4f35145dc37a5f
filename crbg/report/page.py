"""One self-contained HTML page with the tables, figures and verdicts."""

from __future__ import annotations

import base64
import html as escape
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from crbg.experiments.config import Config, Experiment
from crbg.report.claims import Verdict

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
img { max-width: 34rem; width: 100%; }
img.wide { max-width: 60rem; }
small, .origin { color: #555; font-size: 0.8rem; }
.demo { background: #fff3cd; padding: 0.6rem 1rem; border: 1px solid #d9b84a; }
"""


@dataclass(frozen=True)
class Section:
    """An experiment with its table, its figure's path without suffix, where its numbers come from, and further tables by caption."""

    experiment: Experiment
    table: pd.DataFrame
    figure: Path
    origin: str
    beside: dict[str, pd.DataFrame] = field(default_factory=dict)


def html(
    config: Config,
    sections: list[Section],
    verdicts: list[Verdict],
    rows: pd.DataFrame,
    tuning: str,
    pictures: list[tuple[str, Path]],
    beside: pd.DataFrame,
) -> str:
    """Put everything on one page; pictures are embedded, nothing is fetched."""
    parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>crbg report</title><style>{STYLE}</style>"]
    parts.append("<h1>Strong lottery tickets, measured and judged</h1>")
    if config.demonstration:
        parts.append("<p class='demo'>A demonstration on a toy data set: it shows that the pipeline works and is evidence for nothing.</p>")
    names = [
        ("verdicts", "Verdicts"),
        *([("comparison", "Comparison")] if len(beside) else []),
        *((s.experiment.name, s.experiment.name) for s in sections),
        ("tickets", "Tickets inside"),
        ("origin", "Where the numbers come from"),
        ("tuning", "Tuning trials"),
    ]
    parts.append("<p>" + " · ".join(f"<a href='#{anchor}'>{escape.escape(text)}</a>" for anchor, text in names) + "</p>")
    judged = pd.DataFrame([v.__dict__ for v in verdicts])
    if any(v.declared for v in verdicts):
        judged = judged.rename(columns={"declared": "declared before / after the first reading"})
    elif verdicts:
        judged = judged.drop(columns="declared")
    parts += ["<h2 id='verdicts'>Verdicts</h2>", judged.to_html(index=False, border=0)]
    if len(beside):
        parts += ["<h2 id='comparison'>The thesis's comparison table</h2>", beside.to_html(index=False, border=0)]
    for s in sections:
        parts.append(f"<h2 id='{s.experiment.name}'>{_about(s.experiment)}</h2>")
        parts.append(_picture(s.figure, f"figure of {s.experiment.name}"))
        parts += [s.table.to_html(index=False, border=0), f"<p class='origin'>{escape.escape(s.origin)}</p>"]
        for caption, table in s.beside.items():
            parts += [f"<p>{escape.escape(caption)}</p>", table.to_html(index=False, border=0)]
    parts.append("<h2 id='tickets'>Tickets inside</h2>")
    for caption, path in pictures:
        parts += [f"<p>{escape.escape(caption)}</p>", _picture(path, "anatomy of a ticket", "wide")]
    origin = rows.drop_duplicates(["digest", "seed"]).groupby(["experiment", "origin", "device", "revision"]).size()
    parts += ["<h2 id='origin'>Where the numbers come from</h2>", origin.rename("runs").reset_index().to_html(index=False, border=0)]
    parts += ["<h2 id='tuning'>Tuning trials</h2><pre>", escape.escape(tuning), "</pre></html>"]
    return "\n".join(parts) + "\n"


def _about(e: Experiment) -> str:
    part = "test set" if e.role == "main" else "validation only"
    return f"{escape.escape(e.about)} <small>({e.name}, {part})</small>"


def _picture(path: Path, alt: str, kind: str = "") -> str:
    data = base64.b64encode(path.with_name(path.name + ".png").read_bytes()).decode()
    return f"<img class='{kind}' alt='{alt}' src='data:image/png;base64,{data}'>"
