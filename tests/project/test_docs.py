"""What README and docs show is run, or at least checked against what there is."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from paths import ROOT

from crbg import cli, models
from crbg.experiments import config

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()
    ]
    return [line for line in lines if line and not line.startswith("export")]


def test_library_example_of_the_readme_finds_an_accurate_ticket(tmp_path):
    code = next(b for b in blocks("README.md", "python") if "find_ticket" in b)
    assert len(code.strip().splitlines()) <= 15
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    accuracy = int(re.search(r"accuracy (\d+)%", out)[1])
    density = float(re.search(r"density ([\d.]+)", out)[1])
    assert accuracy >= 80
    assert abs(density - 0.1) < 0.003


def test_ticket_of_the_readme_rebuilds_its_network():
    code = next(b for b in blocks("README.md", "python") if "ticket = Ticket.load" in b)
    code += "print(sum(int(p.count_nonzero()) for p in network.parameters()), ticket.mask.kept)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    assert out[0] == out[1]
    assert int(out[0]) > 20_000


def test_recorded_runs_are_a_table_as_shown():
    code = next(b for b in blocks("results/README.md", "python") if "pandas" in b)
    code += "print(len(runs), len(set(runs.digest)), runs.digest[0], *sorted(runs.seed.unique()), float(flat['record.density'].sum()))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    rows = [json.loads(line) for line in (ROOT / re.search(r"results/\S+\.jsonl", code)[0]).open()]
    seeds = sorted({r["seed"] for r in rows})
    assert out[:-1] == list(map(str, [len(rows), len({r["digest"] for r in rows}), rows[0]["digest"], *seeds]))
    assert float(out[-1]) == pytest.approx(sum(r["record"]["density"] for r in rows))


def test_every_committed_record_reads_the_same_in_pandas():
    line = re.search(r"pandas\.read_json\(\S+ (.*)\)", next(b for b in blocks("results/README.md", "python")))[1]
    arguments = {name: value == "True" for name, value in re.findall(r"(\w+)=(True|False)", line)}
    for path in (ROOT / "results/recorded").glob("*.jsonl"):
        table = pandas.read_json(path, **arguments)
        rows = list(map(json.loads, path.read_text().splitlines()))
        for name in ("digest", "seed", "spec", "record", "provenance"):
            assert list(table[name]) == [row[name] for row in rows], path


def test_every_crbg_command_shown_parses_and_names_what_exists():
    shown = [shlex.split(c) for c in commands() if c.startswith("crbg ")]
    assert len(shown) >= 5
    parser = cli._parser()
    configuration = config.read([ROOT / "config.yaml"])
    for words in shown:
        args = parser.parse_args(words[1:])
        if getattr(args, "experiment", None):
            assert (
                cli._cells(args, configuration) if hasattr(args, "where") else configuration.experiment(args.experiment)
            )


def test_every_make_target_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    text = "".join((ROOT / page).read_text() for page in PAGES)
    shown = set(re.findall(r"(?<![a-z])make ([a-z][a-z-]+)", text)) - {"and"}
    assert {"quickstart", "test", "lint"} <= shown
    assert shown <= targets


def test_snakemake_targets_shown_exist():
    configuration = config.read([ROOT / "config.yaml"])
    shown = [c.split()[-1] for c in commands() if c.startswith("snakemake")]
    assert {"lenet", "all"} <= set(shown)
    assert set(shown) <= set(configuration.targets())


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert "://" in link or ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def with_models(monkeypatch, folder):
    """Look for architectures in a folder too, as if its files lay in crbg/models."""
    for path in (ROOT / "crbg/models").glob("[a-z]*.py"):
        (folder / path.name).write_text(path.read_text())
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    models.families.cache_clear()


def test_architecture_example_of_contributing_builds(monkeypatch, tmp_path):
    import torch

    code = next(b for b in blocks("CONTRIBUTING.md", "python") if "NAMES" in b)
    (tmp_path / "tiny.py").write_text(code)
    with_models(monkeypatch, tmp_path)
    try:
        assert models.build("tiny-4", (1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    finally:
        models.families.cache_clear()
        sys.modules.pop("crbg.models.tiny", None)


def test_the_page_on_architectures_runs_as_it_stands(monkeypatch, tmp_path):
    file, rule = blocks("docs/adding-an-architecture.md", "python")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/lenet5.py").write_text(file)
    with_models(monkeypatch, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(blocks("docs/adding-an-architecture.md", "yaml")[0])
    try:
        assert cli.main(["run", "mine", "--config", "mine.yaml", "--seeds", "0"]) == 0
        assert cli.main(["verify", "mine", "--config", "mine.yaml", "--seeds", "0"]) == 0
    finally:
        models.families.cache_clear()
        sys.modules.pop("crbg.models.lenet5", None)
    records = [json.loads(p.read_text()) for p in Path("results/runs").glob("*/seed0/record.json")]
    assert len(records) == 3
    assert all(r["validation"]["readings"]["binary"]["accuracy"] > 30 for r in records), "three times chance"
    normed = [r for r in records if r["spec"]["model_args"]]
    assert all("with_search_statistics" in r["validation"]["readings"]["binary"] for r in normed)
    assert len(normed) == 2
    assert "ruleorder: search_mine > search" in rule  # tests/integration/test_workflow.py plans with it


def test_method_example_finds_tickets(monkeypatch, tmp_path):
    import yaml

    from crbg import methods

    code = blocks("docs/adding-a-method.md", "python")[0]
    assert 20 <= len(code.splitlines()) <= 40
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/sensitivity.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    monkeypatch.chdir(tmp_path)
    Path("worth.yaml").write_text(blocks("docs/adding-a-method.md", "yaml")[0])
    assert yaml.safe_load(Path("worth.yaml").read_text())["experiments"]["worth"]["arms"]
    assert "sensitivity" in methods.names()
    where = ["--where", "arm=sensitivity", "--seeds", "0", "--config", "worth.yaml"]
    assert cli.main(["run", "worth", *where]) == 0
    assert cli.main(["verify", "worth", *where]) == 0
    found = [config.read(["worth.yaml"]).experiment("worth").cells[0].spec]
    assert found[0].method == "sensitivity"
    records = [json.loads(p.read_text()) for p in Path("results/runs").glob("sensitivity-*/seed0/record.json")]
    accuracy = {round(r["density"], 3): r["validation"]["readings"]["binary"]["accuracy"] for r in records}
    assert set(accuracy) == {0.5, 0.1}
    sys.modules.pop("crbg.methods.sensitivity", None)
    methods.get.cache_clear()


def test_a_new_method_joins_the_comparison_as_its_page_says(tmp_path, monkeypatch):
    from crbg import methods

    (tmp_path / "joined.yaml").write_text(blocks("docs/adding-a-method.md", "yaml")[1])
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/sensitivity.py").write_text(blocks("docs/adding-a-method.md", "python")[0])
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    monkeypatch.chdir(ROOT)
    joined = config.read(["config.yaml", str(tmp_path / "joined.yaml")])
    trials = [c for c in joined.experiment("lenet_rivals_tune").cells if c.arm == "sensitivity"]
    rows = [c for c in joined.experiment("lenet_rivals").cells if c.arm == "sensitivity"]
    assert {c.spec.density for c in trials} == {c.spec.density for c in rows} == {0.5, 0.1, 0.05, 0.02}
    assert len(trials) == 4 * 3 * 2
    assert joined.unchosen(rows) == ["lenet_rivals.sensitivity"]
    sys.modules.pop("crbg.methods.sensitivity", None)
    methods.get.cache_clear()


@pytest.mark.parametrize("page", PAGES)
def test_prose_keeps_to_its_own_words(page):
    text = (ROOT / page).read_text().replace("`prune_rate` is not used", "")
    assert "prune_rate" not in text
    assert "training-free" not in text


def test_readme_numbers_are_those_of_the_records():
    from crbg.report import tables
    from crbg.report.records_table import tidy, unfinished

    configuration = config.read([ROOT / "config.yaml"])
    rows = tidy(configuration)
    if rows.empty:
        pytest.skip("no records in this clone")
    readme = (ROOT / "README.md").read_text()
    missing = unfinished(configuration, rows)
    for e in configuration.experiments.values():
        if e.role == "main" and e.view in ("curve", "methods", "winners") and e.name not in missing:
            assert tables.readme_table(e, rows) in readme


def test_experiment_example_of_contributing_plans(tmp_path):
    (tmp_path / "first.yaml").write_text(blocks("CONTRIBUTING.md", "yaml")[0])
    first = config.read([ROOT / "config.yaml", tmp_path / "first.yaml"]).experiment("first")
    assert len(first.cells) == 12


def test_the_paper_is_balanced_and_quotes_numbers_as_macros():
    text = re.sub(r"(?<!\\)%.*", "", (ROOT / "paper/main.tex").read_text())
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    opened, closed = (sorted(re.findall(rf"\\{word}\{{(\w+)\}}", text)) for word in ("begin", "end"))
    assert opened == closed
    assert text.count("$") % 2 == 0
    keys = re.findall(r"\\(?:num|pct)\{([^}#]+)\}", text)
    assert len(keys) > 20
    labels = set(re.findall(r"\\label\{([^}]+)\}", text))
    assert set(re.findall(r"\\ref\{([^}]+)\}", text)) <= labels
