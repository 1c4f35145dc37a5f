"""The committed figures and tables are exactly those that a document shows; a report creates the others."""

import re
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

from crbg.report import paper

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
    source = (ROOT / "paper/main.tex").read_text()
    drawn = re.findall(r"\\includegraphics(?:\[[^]]*\])?\{(.*?)\}", source)
    out = {Path("paper") / f"{name}.pdf" for name in drawn}
    out |= {Path("paper") / name for name in re.findall(r"\\input\{(tables/.*?)\}", source)}
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
    source = (ROOT / "paper/main.tex").read_text().replace(r"\_", "_")
    named = re.findall(r"\\texttt\{(paper/(?:tables|figures)/[\w.]+)\}", source)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_measured_number_of_the_paper_is_a_macro():
    text = re.sub(r"(?<!\\)%.*", "", (ROOT / "paper/main.tex").read_text().split(r"\begin{document}")[1])
    text = re.sub(r"\\begin\{equation\}.*?\\end\{equation\}|\$.*?\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:crbgnumber|num|pct|cite[tp]?|ref|label)\{.*?\}|\\includegraphics\[.*?\]|p\{.*?\}", "", text)
    quoted = {"83.1", "91.5", "90.5", "98.2", "97.8"}  # published values
    assert set(re.findall(r"\d+\.\d+", text)) <= quoted | {"0.3"}  # the error of the digitised points


def test_references_are_cited_and_have_identifiers():
    entries = (ROOT / "paper/references.bib").read_text().split("\n@")[1:]
    names = {entry.partition("{")[2].partition(",")[0] for entry in entries}
    cited = re.findall(r"\\cite[tp]?\{(.*?)\}", (ROOT / "paper/main.tex").read_text())
    assert {name for group in cited for name in group.split(",")} == names
    assert [e.partition(",")[0] for e in entries if not re.search(r"doi = \{10\.\d{4,}/", e)] == []


def test_a_paper_without_latex_says_so_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "main.tex").write_text("x")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert paper.typeset(tmp_path).startswith(f"{tmp_path / 'paper.pdf'}: not built, because LaTeX is not installed")
    (tmp_path / "latexmk").write_text("#!/bin/sh\necho '! wrong key'\nexit 1\n")
    (tmp_path / "latexmk").chmod(0o755)
    assert paper.typeset(tmp_path) == f"{tmp_path / 'paper.pdf'}: LaTeX failed: ! wrong key"
