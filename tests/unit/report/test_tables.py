import pytest
from made_up import around
from records import made_up_record

from crbg.errors import CrbgError
from crbg.experiments import record_store
from crbg.report import claims, numbers, tables
from crbg.report.records_table import tidy, unfinished, values
from crbg.storage.atomic import read_json, write_json

# --- tables ---


def test_the_main_table_shows_mean_and_interval(project):
    project.put(
        "ours",
        0.5,
        [90.0, 91.0, 92.0, 93.0],
        exact=[80.0, 80.0, 81.0, 81.0],
        sanity={"reinit": [10.0, 11.0, 12.0, 13.0]},
    )
    project.put("ours", 0.1, [70.0], missed=True, sanity={"reinit": [30.0]})
    project.put("dense", None, around(98.0))
    table = tables.main_table(tidy(project.config), "main").set_index(["arm", "sparsity %"])
    # The half-width of the interval is t(0.975, 3) * s / sqrt(4) = 3.18245 * 1.29099 / 2 = 2.0543. For `exact`, where
    # s = 0.57735, it is 0.9187.
    line = table.loc[("ours", "50.0")]
    assert line["binary %"] == "91.50 ± 2.05"
    assert line["exact %"] == "80.50 ± 0.92"
    assert (line["reinit %"], line["shuffle %"], line["n"], line["missed"], line["search s"]) == (
        "11.5",
        "",
        "4",
        "0",
        "4",
    )
    short = table.loc[("ours", "90.0")]
    assert (short["binary %"], short["reinit %"], short["n"], short["missed"]) == ("70.00 (n = 1)", "30.0", "1", "1")
    assert len(table) == 3


def test_the_size_of_the_file_is_a_column_if_every_record_has_it(project):
    project.put("ours", 0.5, around(90.0), file_bytes=4000)
    table = tables.main_table(tidy(project.config), "main")
    assert list(table["bytes"]) == ["4,000"]
    project.put("ours", 0.1, around(80.0))
    assert "bytes" not in tables.main_table(tidy(project.config), "main")


def test_headline_numbers_are_of_the_test_part_where_it_was_opened(project):
    project.put("ours", 0.5, around(90.0), tested=False)
    assert tables.main_table(tidy(project.config), "main")["binary %"][0].startswith("89.00")
    project.put("ours", 0.5, around(90.0))
    assert tables.main_table(tidy(project.config), "main")["binary %"][0].startswith("90.00")


def test_runs_without_a_test_evaluation_are_listed_below_the_table(project):
    project.put("ours", 0.5, around(90.0), tested=False)
    experiment, config = project.config.experiment("main"), project.config
    rows, words = tidy(config), "Measured on validation images only, and therefore not in the table"
    assert words not in tables.markdown(tables.main_table(rows, "main"), experiment, config, rows)
    project.put("theirs", 0.5, around(80.0))
    rows = tidy(config)
    text = tables.markdown(tables.main_table(rows, "main"), experiment, config, rows)
    assert f"{words}: ours 89.00 ± 0.13." in text


def test_rows_of_an_arm_come_by_seed(project):
    project.put("ours", 0.5, [1.0, 2.0, 3.0, 4.0])
    project.put("ours", 0.1, [5.0, 6.0, 7.0, 8.0])
    rows = tidy(project.config).sample(frac=1, random_state=0)
    assert list(values(rows, "main", "ours", 0.5).value) == [1, 2, 3, 4]
    assert list(values(rows, "main", "ours", 0.1, "validation", "mean").value) == [4, 5, 6, 7]
    assert values(rows, "main", "ours", None).empty
    project.put("dense", None, around(9.0))
    assert len(values(tidy(project.config), "main", "dense", None)) == 4


def test_an_ablation_is_compared_seed_by_seed(project):
    project.put("ours", 0.5, [90.0, 91.0, 92.0, 93.0])
    project.put("ours", 0.5, [90.5, 91.5, 92.7, 93.7], experiment="other", tested=False)
    table = tables.ablation_table(tidy(project.config), project.config.experiment("other"))
    # The differences 0.5, 0.5, 0.7, 0.7 have mean 0.6 and s = 0.11547; the half-width is 3.18245 * 0.11547 / 2 = 0.184.
    assert list(table["difference to main (paired)"]) == ["+0.60 [+0.42, +0.78], n = 4"]
    project.put("ours", 0.5, [90.5, 91.5, 92.7, 93.7], experiment="other", tested=False, order="x")
    table = tables.ablation_table(tidy(project.config), project.config.experiment("other"))
    assert list(table["difference to main (paired)"]) == ["no pairs"]


def test_tuning_trials_are_listed_best_first(project):
    # There are two settings with two seeds each.
    project.put("ours", 0.5, [80.0, 82.0, 84.0, 86.0], experiment="tuning", tested=False)
    project.put("ours", 0.1, [60.0, 60.0], experiment="tuning", tested=False, missed=True)
    text = tables.tuning_table(tidy(project.config))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert [r[3] for r in rows] == ["lr 0.02", "lr 0.04", "lr 0.02"]
    assert [(r[2], r[5], r[6], r[7]) for r in rows] == [
        ("0.1", "59.00", "2", "2"),
        ("0.5", "84.00", "2", "0"),
        ("0.5", "80.00", "2", "0"),
    ]


def test_every_arm_has_its_number_in_tex(project):
    project.put("ours", 0.5, [90.0, 91.0, 92.0, 93.0])
    project.put("dense", None, [98.0])
    project.put("ours", 0.5, [90.5, 91.0, 91.0, 93.5], experiment="other", tested=False)
    project.put("ours", 0.1, around(70.0), experiment="tuning")
    verdict = claims.Judgement("c 1", "s", "q", "reproduced", "91.5 % [90, 93]", "r")
    found = numbers.collect(tidy(project.config), [verdict], project.config)
    wanted = {"main.ours.0.5": "91.50 ± 2.05", "main.ours.0.5.n": "4", "main.ours.0.5.sparsity": "50.0"}
    wanted |= {"main.dense.none": "98.00 (n = 1)"}
    assert {k: found[k] for k in wanted} == wanted
    assert found["main.ours.0.5.digest"] == project.cells("ours", 0.5)[0].spec.digest()
    assert found["other.ours.0.5"].startswith("90.50")  # validation accuracy is one point lower
    assert found["other.ours.0.5.difference"].startswith("+0.00 [")
    assert (found["verdict.c-1"], found["evidence.c-1"]) == ("reproduced", "91.5 % [90, 93]")
    assert (found["runs"], found["runs.tuning"], found["verdicts.judged"]) == ("13", "4", "1")
    assert not any(k.startswith("tuning.") for k in found)
    text = numbers.macros(found)
    assert r"\@namedef{crbg@main.ours.0.5}{91.50 $\pm$ 2.05}" in text
    assert r"\@namedef{crbg@evidence.c-1}{91.5 \% [90, 93]}" in text
    assert r"\errmessage{unknown number #1}" in text


def test_a_paper_that_quotes_an_unknown_number_is_refused(tmp_path):
    paper = tmp_path / "main.tex"
    numbers.check(paper, {})  # without a paper there is nothing to check
    (tmp_path / "t.tex").write_text("")
    paper.write_text("% \\crbgnumber{not.read}\n\\crbgnumber{a.b} \\input{t} \\input{t.tex}\n")
    numbers.check(paper, {"a.b": "1"})
    paper.write_text("one\n\\num{a.b} and \\pct{a.c}\n\\includegraphics[width=1cm]{figures/x}\n")
    with pytest.raises(CrbgError) as caught:
        numbers.check(paper, {"a.b": "1"})
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{paper}:2: unknown number 'a.c': did you mean 'a.b'?")
    assert second.startswith(f"{paper}:3: figures/x does not exist")
    assert numbers.check(paper, {"a.b": "1"}, ["a", "x"]) == 2  # names of unfinished experiments are accepted
    with pytest.raises(CrbgError, match="figures/x"):
        numbers.check(paper, {"a.b": "1"}, ["a"])


def test_latex_escapes_what_tex_would_misread(project):
    project.put("ours", 0.5, around(90.0))
    text = tables.latex(tables.main_table(tidy(project.config), "main").assign(arm="a_b"))
    assert r"a\_b" in text
    assert r"90.00 $\pm$ 0.13" in text
    assert r"binary \%" in text
    assert all(text.count(rule) == 1 for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


def test_a_record_that_lacks_something_is_named(project):
    project.put("ours", 0.5, around(90.0))
    cell = project.cells("ours", 0.5)[2]
    path = record_store.run_folder(project.config, cell.spec, 2) / "record.json"
    record = read_json(path)
    del record["digests"]
    write_json(path, record)
    with pytest.raises(CrbgError, match=rf"{cell.spec.slug()} seed 2 \(this run\) lacks 'digests'"):
        tidy(project.config)


def test_collapsed_runs_count_as_done_and_give_no_number(project):
    project.put("ours", 0.5, around(90.0))
    cell = project.cells("ours", 0.5)[0]
    where = record_store.run_folder(project.config, cell.spec, 0)
    write_json(where / "record.json", made_up_record(cell.spec, 0, status="collapse"))
    (where / "evaluation.json").unlink()
    rows = tidy(project.config)
    assert len(rows[rows.status == "collapse"]) == 1
    assert list(values(rows, "main", "ours", 0.5).seed) == [1, 2, 3]
    missing = {name: len(runs) for name, runs in unfinished(project.config, rows).items()}
    assert missing == {"main": 24, "other": 4, "tuning": 8}
