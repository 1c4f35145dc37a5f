import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_up import CONTRAST, GOOD, around

from crbg.experiments import config as configs
from crbg.report.brief import _runs, brief
from crbg.report.build import build
from crbg.report.records_table import tidy

# --- the whole report ---

MARKS = ("<!-- numbers: written by `crbg report`, do not edit -->\n", "<!-- end of numbers -->")


def whole(project):
    for arm, level in (("ours", 95.0), ("quiet", 94.0), ("theirs", 90.0)):
        for density in (0.5, 0.1):
            project.put(arm, density, around(level), sanity={"reinit": around(12.0)})
    project.put("dense", None, around(98.0))
    project.put("ours", 0.5, around(96.0), experiment="other", tested=False)
    project.put("ours", 0.5, [80.0, 82.0], experiment="tuning", tested=False)
    rule = {
        "type": "value",
        "experiment": "main",
        "arm": "ours",
        "density": 0.5,
        "published": 95.0,
        "at": 0.45,
        "margin": 1.0,
    }
    body = {"claims": [GOOD | {"rule": rule, "quote": "<b>95 %</b>"}], "contrasts": [CONTRAST]}
    Path("paper/claims.yaml").write_text(yaml.safe_dump(body))
    Path("README.md").write_text(f"before\n{MARKS[0]}old{MARKS[1]}\nafter\n")


def written(*folders):
    files = [p for f in folders for p in Path(f).rglob("*") if p.is_file() and "runs" not in p.parts]
    return {str(p): p.read_bytes() for p in files}


@pytest.mark.long
def test_the_report_writes_tables_figures_verdicts_and_a_page(project):
    whole(project)
    lines = build(project.config, page_copy=Path("copy/page.html"))
    names = {"tables/main.md", "tables/main.tex", "tables/other.md", "tables/tuning.md", "tables/verdicts.md"}
    names |= {"figures/main.png", "figures/main.pdf", "figures/main.svg", "numbers.tex", "report.html"}
    first = written("paper")
    assert {f"paper/{n}" for n in names} <= set(first)
    assert "95.00 ± 0.13" in first["paper/tables/main.md"].decode()
    assert "demonstration" not in first["paper/tables/main.md"].decode().lower()
    assert "**reproduced**" in first["paper/tables/verdicts.md"].decode()
    assert first["paper/figures/main.pdf"].startswith(b"%PDF")

    page = first["paper/report.html"].decode()
    assert first["paper/figures/main.svg"].startswith(b"<?xml")
    assert page.count("<svg") == 3  # the key figure and one for each of `main` and `other`
    assert {"main", "other"} == set(re.findall(r'<article id="(.*?)">', page))
    assert "&lt;b&gt;95 %&lt;/b&gt;" in page  # markup in a quote is escaped
    assert "Ours &amp; theirs" in page
    assert "demonstration" not in page.lower()
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert Path("copy/page.html").read_text() == page

    readme = Path("README.md").read_text()
    assert readme.startswith(f"before\n{MARKS[0]}")
    assert readme.endswith(f"{MARKS[1]}\nafter\n")
    assert "95.00 ± 0.13" in readme
    assert "old" not in readme
    rows = Path("results/results.csv").read_text().splitlines()
    assert len(rows) - 1 == len(tidy(project.config))
    assert any("tuning: 6 runs are missing; `crbg run tuning` runs them" in line for line in lines)

    build(project.config)
    assert written("paper") == first, "the same records must give the same bytes"


def test_a_demonstrations_report_says_so_everywhere(project):
    project.demonstrate()
    whole(project)
    build(project.config)
    for name in ("tables/main.md", "tables/verdicts.md", "report.html"):
        assert "demonstration" in Path(f"demo/paper/{name}").read_text().lower()
    assert '<p class="demo">' in Path("demo/paper/report.html").read_text()
    assert "reproduced**" not in Path("demo/paper/tables/verdicts.md").read_text()
    assert "old" in Path("README.md").read_text()
    assert [p.name for p in Path("paper").iterdir()] == ["claims.yaml"]
    text = brief(project.config, project.config.experiments.values())
    assert "DEMONSTRATION" in text
    assert "26 of main" not in text
    assert "28 of main, 4 of other, 2 of tuning" in text
    assert "main, best ticket of each method at 90 % sparsity, untrained weights, test accuracy:\n  ours 95.0 %" in text
    assert text.endswith("The picture: demo/paper/figures/main.png")
    assert len(text.splitlines()) <= 10


def test_one_chapter_alone(project):
    whole(project)
    build(project.config, "main")
    drawn, tables = (f"paper/figures/main.{s}" for s in ("pdf", "png", "svg")), ("main.md", "main.tex")
    assert sorted(written("paper")) == ["paper/claims.yaml", *drawn, *(f"paper/tables/{t}" for t in tables)]


@pytest.mark.parametrize("files", [["config.yaml"], ["config.yaml", "mine.yaml"]])
def test_another_configuration_leaves_the_documents_alone(project, files):
    Path("README.md").write_text(f"{MARKS[0]}old{MARKS[1]}")
    Path("mine.yaml").write_text("threads: 1\n")
    same = len(files) == 1
    lines = build(configs.read(files, [] if same else ["paper=elsewhere"]))
    assert ("old" in Path("README.md").read_text()) != same
    assert any("README.md" in line and "not rewritten" in line for line in lines) != same


def test_a_report_of_nothing_is_a_report(project):
    lines = build(project.config)
    assert Path("paper/report.html").exists()
    assert any("main: 28 runs are missing" in line for line in lines)
    assert brief(project.config, project.config.experiments.values()).startswith("Runs: none.")


def test_the_summary_of_many_experiments_counts_a_shared_run_once():
    rows = pd.DataFrame(
        [(f"e{i}", d, 0) for i in range(13) for d in ("shared", i)], columns=["experiment", "digest", "seed"]
    )
    assert _runs(rows) == "Runs: 14 finished (done or collapsed) in 13 experiments."
