"""Typesetting of the paper. `python -m crbg.report.paper FOLDER` typesets it from the files in the folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = "latexmk texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended"
FAILED = "LaTeX failed"


def typeset(folder: Path) -> str:
    """Build paper.pdf if LaTeX is installed; return one line that says what happened."""
    source, made = folder / "main.tex", folder / "paper.pdf"
    if not source.exists():
        return f"{source} does not exist, so there is no PDF"
    if shutil.which("latexmk") is None:
        return f"{made}: not built, because LaTeX is not installed (Debian: apt install {PACKAGES})"
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-jobname=paper", source.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return f"{made}: the paper"
    wrong = next((line for line in done.stdout.splitlines() if line.startswith("!")), "see its log")
    return f"{made}: {FAILED}: {wrong}"


if __name__ == "__main__":
    said = typeset(Path(sys.argv[1]))
    print(said)
    sys.exit(FAILED in said)
