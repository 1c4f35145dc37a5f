"""Tables from the records of the zoo."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

Record = dict[str, Any]
COLUMNS = ("thesis", "polished", "library", "edge_popup", "biprop", "concrete")


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
            tuned = best_trial(here)
            library = by.get("library")
            gap = tuned["test"] - library["test"] if tuned and library else None
            shown = [by[c]["test"] if c in by else None for c in COLUMNS]
            out.append([name, cell, here[0]["chance"], dense, *shown, tuned["test"] if tuned else None, gap])
    return out


def table(records: Sequence[Record]) -> str:
    """Return the Markdown document: a table for each half, each with a summary of the gaps."""
    text = ["# The zoo\n\nWritten by `python benchmarks/zoo.py --table`. Test scores: accuracy in %, or 100 R^2.\n"]
    for half in ("dev", "judged"):
        body = rows(records, half)
        if not body:
            continue
        heads = ["task", "cell", "chance", "dense", *COLUMNS, "tuned", "gap"]
        text.append(f"## {half}\n\n{tabulate(body, heads, floatfmt='.1f', tablefmt='pipe')}\n")
        text.append(summary(body))
    return "\n".join(text)


def summary(body: Sequence[Sequence[Any]]) -> str:
    """Return the mean score of each variant, and median and maximum of the gaps."""
    lines = []
    for i, column in enumerate(COLUMNS, start=4):
        if scores := [r[i] for r in body if r[i] is not None]:
            lines.append(f"- {column}: mean {statistics.mean(scores):.1f} over {len(scores)} cells")
    if gaps := [r[-1] for r in body if r[-1] is not None]:
        lines.append(f"- gap of library to tuned: median {statistics.median(gaps):.1f}, largest {max(gaps):.1f}")
    return "\n".join(lines) + "\n"
