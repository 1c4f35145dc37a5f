"""One self-contained HTML page with the tables, figures and verdicts."""

from __future__ import annotations

import base64
import html as escape
from pathlib import Path

import pandas as pd

from crbg.config import Config, Experiment
from crbg.report.claims import Verdict

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
img { max-width: 34rem; width: 100%; }
.demo { background: #fff3cd; padding: 0.6rem 1rem; border: 1px solid #d9b84a; }
"""


Section = tuple[Experiment, pd.DataFrame, Path]  # an experiment with its table and its figure's path without suffix


def html(
    config: Config,
    sections: list[Section],
    verdicts: list[Verdict],
    rows: pd.DataFrame,
    tuning: str,
) -> str:
    """Put everything on one page; pictures are embedded, nothing is fetched."""
    parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>crbg report</title><style>{STYLE}</style>"]
    parts.append("<h1>Strong lottery tickets, measured and judged</h1>")
    if config.demonstration:
        parts.append("<p class='demo'>A demonstration on a toy data set: it shows that the pipeline works and is evidence for nothing.</p>")
    for e, table, figure in sections:
        picture = base64.b64encode(figure.with_suffix(".png").read_bytes()).decode()
        parts.append(f"<h2>{escape.escape(e.about)}</h2><img alt='accuracy against sparsity' src='data:image/png;base64,{picture}'>")
        parts.append(table.to_html(index=False, border=0))
    judged = pd.DataFrame([v.__dict__ for v in verdicts])
    parts += ["<h2>Verdicts</h2>", judged.to_html(index=False, border=0)]
    origin = rows.drop_duplicates(["digest", "seed"]).groupby(["experiment", "origin", "device", "revision"]).size()
    parts += ["<h2>Where the numbers come from</h2>", origin.rename("runs").reset_index().to_html(index=False, border=0)]
    parts += ["<h2>Tuning trials</h2><pre>", escape.escape(tuning), "</pre></html>"]
    return "\n".join(parts) + "\n"
