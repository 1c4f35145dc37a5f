"""Tables from the records of the zoo."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

Record = dict[str, Any]
COLUMNS = ("thesis", "polished", "library", "edge_popup", "biprop", "concrete")
INTRODUCTION = """# The zoo

Small tasks with torch's own initial weights, one seed each. The defaults of `find_ticket` were chosen by the validation
scores of the tasks that are marked `dev` in zoo_tasks.py, and frozen by a commit before any search on the tasks under
`judged`. Searches of the choice itself are not recorded.
Written by `python benchmarks/zoo.py --table`.

Test scores are accuracies in %, or 100 R^2 for regression (friedman, circuit, autoencoder). `chance` is the score of
the best constant answer, `dense` that of the trained dense network. `thesis` is CRBG as published, `polished` the same
without noise and with hard gates in the second half, and `library` the default of `find_ticket`. Edge-popup, biprop and
concrete run at their defaults; biprop runs on sign(W) times one size per tensor. `tuned` is the trial with the best
validation score among (up to) twelve trials of CRBG's options, and `gap` is tuned minus library. The standard error of
an accuracy on 400 to 1000 test examples is at most 2.5 points (cancer-mlp3 has 150).
"""
LARGEST_GAP = 6.0  # the aim for every cell
ABOVE_CHANCE = 5.0  # a score learns if it is above chance by this many points


def best_trial(records: Sequence[Record]) -> Record | None:
    """Return the trial with the best validation score."""
    trials = [r for r in records if r["variant"].startswith("trial")]
    return max(trials, key=lambda r: float(r["validation"]), default=None)


def rows(records: Sequence[Record], half: str) -> list[list[Any]]:
    """Return one row per task and cell: test scores of all variants, and the gap of `library` to `tuned`."""
    out = []
    own = [r for r in records if r["half"] == half]
    for name in dict.fromkeys(r["task"] for r in own):
        dense = next((r["test"] for r in own if r["task"] == name and r["variant"] == "dense"), None)
        for cell in dict.fromkeys(r["cell"] for r in own if r["task"] == name and r["cell"]):
            here = [r for r in own if (r["task"], r["cell"]) == (name, cell)]
            by = {r["variant"]: r for r in here}
            tuned, library = best_trial(here), by.get("library")
            gap = tuned["test"] - library["test"] if tuned and library else None
            shown = [by[c]["test"] if c in by else None for c in COLUMNS]
            out.append([name, cell, here[0]["chance"], dense, *shown, tuned["test"] if tuned else None, gap])
    return out


def table(records: Sequence[Record]) -> str:
    """Return the Markdown document: a table for each half, each with a summary."""
    text = [INTRODUCTION]
    for half in ("dev", "judged"):
        if body := rows(records, half):
            heads = ["task", "cell", "chance", "dense", *COLUMNS, "tuned", "gap"]
            text += [
                f"## {half}\n\n{tabulate(body, heads, floatfmt='.1f', tablefmt='pipe')}\n",
                summary(body),
                changes(records, half),
            ]
    return "\n".join(text)


def changes(records: Sequence[Record], half: str) -> str:
    """Return a table of the mean change of the test score when one setting of `library` is changed, by cell."""
    own = [r for r in records if r["half"] == half]
    library = {(r["task"], r["cell"]): r["test"] for r in own if r["variant"] == "library"}
    cells = list(dict.fromkeys(cell for _, cell in library))
    body = []
    for name in dict.fromkeys(r["variant"] for r in own if r["variant"].startswith("trial")):
        trial = [r for r in own if r["variant"] == name and (r["task"], r["cell"]) in library]
        settings = ", ".join(f"{k} {v}" for k, v in trial[0]["options"].items())
        by_cell = [[r["test"] - library[r["task"], r["cell"]] for r in trial if r["cell"] == cell] for cell in cells]
        body.append([settings, *(f"{statistics.mean(d):+.1f}" if d else "" for d in by_cell)])
    if not body:
        return ""
    heads = [f"change of `library` ({half})", *cells]
    return f"\n{tabulate(body, heads, tablefmt='pipe', disable_numparse=True)}\n"


def summary(body: Sequence[Sequence[Any]]) -> str:
    """Return the mean score of each variant, and how the gaps compare with the aim."""
    lines = []
    for i, column in enumerate(COLUMNS, start=4):
        if scores := [r[i] for r in body if r[i] is not None]:
            lines.append(f"- {column}: mean {statistics.mean(scores):.1f} over {len(scores)} of {len(body)} cells")
    judged = [r for r in body if r[-1] is not None]
    if judged:
        gaps = [r[-1] for r in judged]
        missed = [f"{r[0]}, {r[1]} ({r[-1]:.1f})" for r in judged if r[-1] > LARGEST_GAP]
        library = 4 + COLUMNS.index("library")
        lost = [f"{r[0]}, {r[1]}" for r in judged if r[library] < r[2] + ABOVE_CHANCE < r[-2]]
        lines += [
            f"- gap over {len(gaps)} cells: median {statistics.median(gaps):.1f} (aim: at most 2)",
            f"- gaps above {LARGEST_GAP:g} points (aim: none): {'; '.join(missed) or 'none'}",
            f"- at chance although the tuned setting learns (aim: none): {'; '.join(lost) or 'none'}",
        ]
    return "\n".join(lines) + "\n"
