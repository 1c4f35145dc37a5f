"""Code in the documents is run; tables and numbers are checked against the code, configuration and records."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from paths import ROOT

from crbg import cli, models
from crbg.cli.arguments import cells_of
from crbg.experiments import config
from crbg.report.build import SHORT

# Printed numbers depend on the number of threads.
PLAIN = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PAGES = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()
    ]
    return [line for line in lines if line and not line.startswith("export")]


def python(code: str, folder: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True, env=os.environ | PLAIN
    ).stdout


def test_library_example_of_the_readme_prints_what_it_says(tmp_path):
    code = next(b for b in blocks("README.md", "python") if "find_ticket" in b)
    assert len(code.strip().splitlines()) <= 15
    out, shown = python(code, tmp_path), blocks("README.md", "text")[0]
    assert re.sub(r"\d+", "N", out) == re.sub(r"\d+", "N", shown)
    for pattern, apart in ((r"accuracy (\d+)%", 5), (r"density ([\d.]+)", 0.003)):
        assert float(re.search(pattern, out)[1]) == pytest.approx(float(re.search(pattern, shown)[1]), abs=apart)


def test_the_tutorial_runs_from_the_first_block_to_the_last(tmp_path):
    """The code blocks contain their own assertions on accuracies, controls and the reloaded ticket."""
    code = "\n".join(blocks("docs/tutorial.md", "python")).replace('"results/', f'"{ROOT}/results/')
    assert code.count("assert ") >= 3
    code += "\nprint(sum(int(p.count_nonzero()) for p in lenet.parameters()), recorded.mask.kept)"
    *_, strong, popup, _, last = python(code, tmp_path).strip().splitlines()
    assert strong.startswith("crbg")
    assert popup.startswith("edge_popup")
    assert min(int(re.search(r"(\d+)%", line)[1]) for line in (strong, popup)) > 70
    assert len(set(last.split())) == 1


def test_the_page_on_choosing_weights_runs():
    exec(compile("\n".join(blocks("docs/choosing-weights.md", "python")), "choosing-weights.md", "exec"), {})


def test_the_page_on_shipping_runs(tmp_path):
    python("\n".join(blocks("docs/how-to/ship-a-ticket.md", "python")), tmp_path)


OWN_MODEL = "docs/how-to/your-own-model.md"


@pytest.mark.parametrize("number", range(6), ids=["mlp", "cnn", "bert", "gpt2", "graph", "gru"])
def test_each_family_on_the_page_about_own_models_runs(number, tmp_path, monkeypatch):
    """The blocks contain their own assertions. Those of other libraries run where these are installed."""
    code = blocks(OWN_MODEL, "python")[number]
    for package in ("transformers", "torch_geometric"):
        if f"from {package}" in code:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {}
    exec(compile(code, OWN_MODEL, "exec"), namespace)
    assert namespace["found"].mask.kept > 0


def test_the_page_on_own_models_shows_six_families():
    assert len(blocks(OWN_MODEL, "python")) == 6


def test_the_page_on_records_runs():
    assert "0.500" in (out := python(blocks("docs/records.md", "python")[0]))
    assert len(out.splitlines()) > 5


def test_the_notebook_on_tickets_finds_one(tmp_path):
    out = python((ROOT / "examples/find_a_ticket.py").read_text(), tmp_path)
    dense, sparse = map(float, re.search(r"random network ([\d.]+)%, ticket ([\d.]+)%", out).groups())
    assert dense < 30 < 80 < sparse
    assert float(re.search(r"shuffled mask ([\d.]+)%", out)[1]) < 40
    assert f"from the file {sparse}%" in out
    assert not list(tmp_path.iterdir()), "the notebook leaves no file behind"


def test_the_ticket_of_the_cart_pole_balances_it():
    script = ROOT / "examples/cartpole.py"
    assert len(script.read_text().splitlines()) < 100
    words = [sys.executable, "-W", "ignore", str(script), "--seeds", "1", "--steps", "60"]
    out = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    ticket, chance, dense = map(int, re.search(r"ticket (\d+), random mask (\d+), random weights (\d+)", out).groups())
    assert ticket > 150
    assert max(chance, dense) < 60


def test_the_notebook_on_records_gives_the_numbers_of_the_tables():
    out = python((ROOT / "examples/read_the_records.py").read_text())
    table = (ROOT / "docs/results.md").read_text()
    polished = re.search(r"^\| crbg_polished +\|(.*)$", table, re.M)[1]
    shown = re.findall(r"([\d.]+) ±", polished)
    assert len(shown) == 7
    printed = [float(m) for m in re.findall(r"^ +True .*? ([\d.]+) [\d.]+ +10$", out, re.M)]
    assert {float(m) for m in shown} <= set(printed)
    assert 7 <= len(printed) <= 14, "two readings"


@pytest.mark.parametrize("name", ["find_a_ticket", "read_the_records"])
def test_notebooks_are_percent_scripts(name):
    text = (ROOT / f"examples/{name}.py").read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    cells = text.split("# %%")
    assert len(cells) >= 8
    assert all(c.startswith((" [markdown]\n# ", "\n")) for c in cells[1:])


def test_recorded_runs_are_a_table_as_shown():
    code = next(b for b in blocks("results/README.md", "python") if "pandas" in b)
    code += "print(len(runs), len(set(runs.digest)), runs.digest[0], *sorted(runs.seed.unique()),"
    code += " float(flat['record.density'].sum()))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    rows = [json.loads(line) for line in (ROOT / re.search(r"results/\S+\.jsonl", code)[0]).open()]
    seeds = sorted({r["seed"] for r in rows})
    assert out[:-1] == list(map(str, [len(rows), len({r["digest"] for r in rows}), rows[0]["digest"], *seeds]))
    assert float(out[-1]) == pytest.approx(sum(r["record"]["density"] for r in rows))


def test_every_committed_record_reads_the_same_in_pandas():
    line = re.search(r"pandas\.read_json\((.*?)\)", next(b for b in blocks("results/README.md", "python")), re.S)[1]
    arguments = {name: value == "True" for name, value in re.findall(r"(\w+)=(True|False)", line)}
    for path in (ROOT / "results/recorded").glob("*.jsonl"):
        table = pandas.read_json(path, **arguments)
        rows = list(map(json.loads, path.read_text().splitlines()))
        for name in ("digest", "seed", "spec", "record", "provenance"):
            assert list(table[name]) == [row[name] for row in rows], path


def test_every_crbg_command_shown_parses_and_names_what_exists():
    shown = [shlex.split(c) for c in commands() if c.startswith("crbg ")]
    assert len(shown) >= 5
    parser = cli.build_parser()
    configuration = config.read([ROOT / "config.yaml"])
    for words in shown:
        args = parser.parse_args(words[1:])
        if getattr(args, "experiment", None):
            by_cells = hasattr(args, "where")
            assert cells_of(args, configuration) if by_cells else configuration.experiment(args.experiment)


def test_every_make_target_shown_exists():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    text = "".join((ROOT / page).read_text() for page in PAGES)
    shown = set(re.findall(r"(?<![a-z])make ([a-z][a-z-]+)", text)) - {"and"}
    assert {"quickstart", "test", "lint"} <= shown
    assert shown <= targets


def test_snakemake_targets_shown_exist():
    configuration = config.read([ROOT / "config.yaml"])
    inline = re.findall(r"`(snakemake --cores all [^`]+)`", (ROOT / "README.md").read_text())
    shown = {c.split()[-1] for c in [*commands(), *inline] if c.startswith("snakemake")} - {"TARGET"}
    assert {"lenet", "winning", "cts", "all"} <= shown
    assert shown <= set(configuration.targets())


RULES = ("rule", "reduced", "second")  # the rules of a claim


def test_the_table_of_targets_counts_claims_and_hours():
    """For each target, the number of claims is exact, and the hours are within a factor of two of the estimate."""
    from crbg.experiments.estimates import estimate_seconds

    configuration = config.read([ROOT / "config.yaml"])
    claims = yaml.safe_load((ROOT / "paper/claims.yaml").read_text())["claims"]
    judged = [{r["experiment"] for r in map(c.get, RULES) if r and "experiment" in r} for c in claims]
    lines = re.findall(
        r"^\| `(\w+)`: [^|]*\| (\d+) \| ([^|]*) \| (\d+) h \| `(.*)` \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert [line[0] for line in lines] == [line[4].split()[-1] for line in lines]
    assert len(lines) == len(set(configuration.targets()) - {"quickstart"})
    for target, count, hardware, hours, _ in lines:
        mine = [e for e in configuration.experiments.values() if target == "all" or target in e.targets]
        assert int(count) == sum(bool(names & {e.name for e in mine}) for names in judged), target
        assert ("GPU" in hardware) == any(e.gpu for e in mine), target
        times = [estimate_seconds(configuration, list({c.key: c for c in e.cells}.values()), bool(e.gpu)) for e in mine]
        assert 0.5 < sum(sum(t.values()) for t in times) / 3600 / int(hours) < 2, target
    sentence = (
        r"(\d+) of the (\d+) rules for claims name an experiment here; (\d+) quote .*, and (\d+) cannot be tested"
    )
    said = re.search(sentence, " ".join((ROOT / "README.md").read_text().split()))
    untestable = sum((c["rule"] or {}).get("type") == "untestable" for c in claims)
    here = sum(map(bool, judged))
    assert said
    assert tuple(map(int, said.groups())) == (here, len(claims), len(claims) - here - untestable, untestable)


def test_models_and_data_of_the_readme_exist():
    from crbg.data.datasets import DATA

    section = (ROOT / "README.md").read_text().split("## Models and data")[1].split("\n## ")[0]
    networks, data = section.split("**Data:**")
    names = re.findall(r"`([\w:-]+)`", networks)
    assert len(names) >= 6
    for name in names:
        assert any(re.fullmatch(pattern, name) for pattern in models.families().values()), name
    assert set(DATA) <= set(re.findall(r"`(\w+)`", data))


def test_paths_named_in_documents_exist():
    made_up = (
        "crbg/PACKAGE",
        "tests/unit/PACKAGE",
        "crbg/methods/sensitivity.py",
        "crbg/models/lenet5.py",
        "crbg/data/majority.py",
        "paper/paper.pdf",
        "paper/report.html",
    )
    top = "crbg|tests|docs|paper|workflow|benchmarks|examples|slurm|profiles"
    for page in PAGES:
        for path in re.findall(rf"`((?:{top})/[\w./-]*)`", (ROOT / page).read_text()):
            assert path.startswith(made_up) or (ROOT / path).exists(), f"{page} names {path}"


def test_every_page_is_in_the_navigation_of_the_site():
    """`make docs` builds the site in strict mode; this test also detects pages missing from the navigation."""
    shown = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(shown) == pages | {"index.md", "commands.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert len(shown) == len(set(shown))


def test_the_page_on_the_command_line_shows_every_command():
    hooks = (ROOT / "docs/hooks.py").read_text()
    listed = ast.literal_eval(re.search(r"^COMMANDS = (\(.*\))$", hooks, re.M)[1])
    out = subprocess.run(
        [sys.executable, "-m", "crbg", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env=os.environ | PLAIN,
    ).stdout
    offered = re.findall(r"^    ([a-z]+) ", out, re.M)
    assert sorted(offered) == sorted(listed)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert "://" in link or ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def with_models(monkeypatch, folder):
    """Register the architectures of a folder as if its files were in crbg/models."""
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
    assert "ruleorder: search_mine > search" in rule  # tests/integration/test_workflow.py tests this rule


def test_the_page_on_data_sets_runs_as_it_stands(monkeypatch, tmp_path):
    from crbg import data
    from crbg.data import datasets, sources
    from crbg.experiments.estimates import size
    from crbg.experiments.spec import Spec
    from crbg.runs.execute import execute
    from crbg.runs.setup import Workspace

    file, entry = blocks("docs/adding-a-data-set.md", "python")
    for folder, name, text in (
        ("data", "majority", file),
        ("models", "signs", 'from crbg.models.lenet import build as lenet\nNAMES = "signs"\nDATA = ("majority",)\n'),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(text)
    with (tmp_path / "models/signs.py").open("a") as out:
        out.write('def build(name, in_shape, classes):\n    return lenet("lenet-32", in_shape, classes)\n')
    with_models(monkeypatch, tmp_path / "models")
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path / "data")])
    made = eval(entry, vars(datasets))
    monkeypatch.setitem(datasets.DATA, made.name, made)
    try:
        spec = Spec("majority", "signs", "dense", epochs=10, batch=50, init="kaiming_normal", options={"lr": 0.01})
        assert execute(spec, 0, Workspace(tmp_path, selected=None)).value() > 90
        assert len(sources.load("majority").test) == 500
        assert min(size(spec)) > 0, "it can be planned"
    finally:
        models.families.cache_clear()
        for name in ("crbg.models.signs", "crbg.data.majority"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("page", "metric", "worse"),
    [("graphs", "accuracy", -60), ("series", "mse", 0.5), ("text", "bits_per_character", 3.5)],
)
def test_the_pages_on_other_data_run_as_they_stand(page, metric, worse, monkeypatch, tmp_path):
    """Each page asserts that its own search succeeds. The study's tickets of CRBG must be better than `worse`."""
    file = f"docs/how-to/{page}.md"
    python(blocks(file, "python")[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("page.yaml").write_text(blocks(file, "yaml")[0])
    names = list(yaml.safe_load(Path("page.yaml").read_text())["experiments"])
    for name in names:
        assert f"`crbg run {name} --config" in (ROOT / file).read_text().replace("\n", " ")
        assert cli.main(["run", name, "--config", "page.yaml", "--seeds", "0"]) == 0
        assert cli.main(["verify", name, "--config", "page.yaml", "--seeds", "0"]) == 0
    records = [json.loads(p.read_text()) for p in Path("results/runs").glob("*/seed0/record.json")]
    assert len(records) == 2 * len(names)
    ours = [r["validation"]["readings"]["binary"] for r in records if r["spec"]["method"] == "crbg"]
    sign = -1 if metric == "accuracy" else 1
    assert max(sign * found[metric] for found in ours if metric in found) < worse
    assert all(found["accuracy"] > 60 for found in ours if metric not in found), "classes, the constant has 33 %"


def test_method_example_finds_tickets(monkeypatch, tmp_path):
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


def test_generated_parts_of_the_documents_are_those_of_the_records(monkeypatch):
    from crbg.report import documents
    from crbg.report.claims import judge, read_claims
    from crbg.report.records_table import tidy, unfinished

    monkeypatch.chdir(ROOT)
    configuration = config.read(["config.yaml"])
    rows = tidy(configuration)
    if rows.empty:
        pytest.skip("no records in this clone")
    missing, shown = unfinished(configuration, rows), set(rows[rows.reading == "binary"].experiment)
    mains = [
        e
        for e in configuration.experiments.values()
        if e.role == "main" and e.view in SHORT and e.name not in missing and e.name in shown
    ]
    made = documents.blocks(mains, rows, judge(read_claims(), rows, configuration))
    for page, marks in (("README.md", {"results", "methods", "verdicts"}), ("docs/results.md", {"numbers"})):
        text = Path(page).read_text()
        assert {m[1] for m in documents.MARKED.findall(text)} == marks
        assert documents.filled(text, made, "../" * page.count("/")) == text, "`crbg report` writes them"
    assert len(made["verdicts"].splitlines()) >= 12, "the ten telling claims are those of paper/claims.yaml"


def test_the_readme_is_a_landing_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 160
    order = ["Install", "A ticket in your own model", "Two commands", "Reproduce the study", "Methods"]
    order += ["Models and data", "What was reproduced", "Extend it", "Documentation, citation, licence"]
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == order


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
