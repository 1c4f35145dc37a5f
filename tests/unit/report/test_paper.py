"""The committed figures and tables are exactly those that a document shows; a report creates the others."""

import re
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))


@pytest.fixture(scope="module")
def committed():
    """Return the figures and tables of the paper that git tracks."""
    command = ["git", "ls-files", "paper/figures", "paper/tables"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("not a git clone")
    return {Path(name) for name in done.stdout.split()}


@pytest.fixture(scope="module")
def shown():
    """Return the files that the paper or a document shows."""
    paper = (ROOT / "paper/main.tex").read_text()
    drawn = re.findall(r"\\includegraphics(?:\[[^]]*\])?\{(.*?)\}", paper)
    out = {Path("paper") / f"{name}.pdf" for name in drawn}
    out |= {Path("paper") / name for name in re.findall(r"\\input\{(tables/.*?)\}", paper)}
    for document in DOCUMENTS:
        text = document.read_text()
        out |= {Path(name) for name in re.findall(r"paper/(?:figures|tables)/[\w.-]+\.(?:md|png|pdf|tex)", text)}
    return out


def test_no_figure_or_table_is_committed_that_no_document_shows(committed, shown):
    folder = any(re.search(r"paper/tables/?[`)\]]", document.read_text()) for document in DOCUMENTS)
    assert {str(p) for p in committed - shown if not (folder and p.suffix == ".md")} == set()


def test_what_the_paper_and_the_documents_show_is_committed(committed, shown):
    assert {str(p) for p in shown - committed} == set()
    assert len([p for p in shown if p.suffix == ".pdf"]) > 5


def test_the_paper_names_tables_that_are_there():
    paper = (ROOT / "paper/main.tex").read_text().replace(r"\_", "_")
    named = re.findall(r"\\texttt\{(paper/(?:tables|figures)/[\w.]+)\}", paper)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).is_file()] == []
