"""Typesetting of the paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def typeset(folder: Path) -> str:
    """Build paper.pdf if LaTeX is installed; return one line that says what happened."""
    source, made = folder / "main.tex", folder / "paper.pdf"
    if not source.exists():
        return f"{source} does not exist, so there is no PDF"
    if shutil.which("latexmk") is None:
        return f"{made}: not built, because LaTeX is not installed (Debian: apt install latexmk texlive-latex-extra)"
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-jobname=paper", source.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return f"{made}: the paper"
    wrong = next((line for line in done.stdout.splitlines() if line.startswith("!")), "see its log")
    return f"{made}: LaTeX failed: {wrong}"
