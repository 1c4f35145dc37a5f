"""The paper as a PDF, and the tables between the markers of the README."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from crbg.experiments.config import Experiment
from crbg.report import tables
from crbg.storage.atomic import write_text

FIRST, LAST = "<!-- numbers: written by `crbg report`, do not edit -->\n", "<!-- end of numbers -->"


def typeset(folder: Path) -> str:
    """Make paper.pdf if LaTeX is installed, and say in one line what happened."""
    source, made = folder / "main.tex", folder / "paper.pdf"
    if not source.exists():
        return f"{source} is not there, so no PDF"
    if shutil.which("latexmk") is None:
        return f"{made}: not made, LaTeX is not installed (Debian: apt install latexmk texlive-latex-extra)"
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-jobname=paper", source.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return f"{made}: the paper"
    wrong = next((line for line in done.stdout.splitlines() if line.startswith("!")), "see its log")
    return f"{made}: LaTeX failed: {wrong}"


def into_readme(mains: Sequence[Experiment], rows: pd.DataFrame, path: Path = Path("README.md")) -> None:
    """Replace the tables between the markers of the README; a README without markers is left alone."""
    text = path.read_text() if path.exists() else ""
    if FIRST not in text or LAST not in text:
        return
    before, rest = text.split(FIRST, 1)
    _, after = rest.split(LAST, 1)
    write_text(path, before + FIRST + "\n".join(tables.readme_table(e, rows) for e in mains) + LAST + after)
