import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from crbg import methods
from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import estimates, record_store
from crbg.report import claims, compare, figures, numbers, stats, tables
from crbg.report.build import brief, build
from crbg.report.records_table import tidy, unfinished, values
from crbg.storage.atomic import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
calm = settings(deadline=None)  # a busy machine is no failure
NUMBERS = st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=2, max_size=8).filter(lambda v: max(v) - min(v) > 0.01)

# --- statistics ---


@calm
@given(NUMBERS, st.sampled_from([0.9, 0.95, 0.99]))
def test_t_interval_is_that_of_scipy(sample, level):
    ours = stats.t_interval(sample, level)
    low, high = scipy_stats.t.interval(level, len(sample) - 1, np.mean(sample), scipy_stats.sem(sample))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert ours.mean == pytest.approx(np.mean(sample), abs=1e-9)
    assert (ours.n, ours.half) == (len(sample), pytest.approx((high - low) / 2))


@calm
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-3, 3)), min_size=2, max_size=8))
def test_paired_test_is_that_of_scipy(pairs):
    a, b = [round(x, 3) for x, _ in pairs], [round(x - d, 3) for x, d in pairs]
    ours = stats.paired(a, b)
    if np.ptp(np.subtract(a, b)) > 1e-2:
        theirs = scipy_stats.ttest_rel(a, b)
        reach = theirs.confidence_interval(0.95)
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6)
        assert (ours.difference.low, ours.difference.high) == pytest.approx((reach.low, reach.high), abs=1e-8)
    assert ours.difference.mean == pytest.approx(np.mean(np.subtract(a, b)), abs=1e-9)
    assert ours.test == "paired t"


@calm
@given(NUMBERS, NUMBERS)
def test_welch_test_is_that_of_scipy(a, b):
    ours, theirs = stats.welch(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
    reach = theirs.confidence_interval(0.95)
    assert (ours.p, ours.test) == (pytest.approx(theirs.pvalue), "Welch")
    assert (ours.difference.low, ours.difference.high) == pytest.approx((reach.low, reach.high))
    assert ours.difference.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)


def test_one_value_says_nothing_about_spread():
    i = stats.t_interval([3.0])
    assert (i.mean, i.low, i.high, i.n) == (3.0, -math.inf, math.inf, 1)
    for test in (stats.paired, stats.welch):
        c = test([3.0], [1.0])
        assert (c.difference.mean, c.difference.low, c.difference.high) == (2.0, -math.inf, math.inf)
        assert math.isnan(c.p)
        assert c.test == "none (n = 1)"
    assert math.isnan(stats.welch([3.0], [1.0, 2.0]).p)
    with pytest.raises(CrbgError, match="at least one value"):
        stats.t_interval([])
    with pytest.raises(CrbgError, match="2 values against 1"):
        stats.paired([1.0, 2.0], [1.0])


def test_equal_differences_have_no_spread():
    assert stats.paired([1.0, 2.0], [0.5, 1.5]).p == 0.0
    assert stats.paired([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_holm_by_hand():
    # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


@calm
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_is_monotone_and_knows_no_order(p, random):
    adjusted = stats.holm(p)
    assert all(raw <= new <= 1 for raw, new in zip(p, adjusted, strict=True))
    assert min(adjusted) == min(1.0, len(p) * min(p))
    ranked = [adjusted[i] for i in sorted(range(len(p)), key=lambda i: p[i])]
    assert ranked == sorted(ranked)
    order = list(range(len(p)))
    random.shuffle(order)
    assert stats.holm([p[i] for i in order]) == [adjusted[i] for i in order]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([], "not run"),
        ([96.0], "inconclusive"),  # one seed judges nothing
        ([97.25, 97.25], "exceeded"),
        ([97.0, 97.0], "reproduced"),  # just at the margin: not beyond it
        ([95.0, 95.0], "reproduced"),  # just at the lower margin
        ([94.75, 94.75], "not reproduced"),
        ([97.2, 97.3, 97.4], "exceeded"),
        ([96.9, 97.1, 97.3], "reproduced"),
        ([95.9, 96.0, 96.1], "reproduced"),
        ([94.0, 95.0, 96.0], "inconclusive"),
        ([95.0, 95.1, 95.2], "inconclusive"),
        ([94.6, 94.7, 94.8], "not reproduced"),
    ],
)
def test_a_published_value_is_judged_by_the_interval(ours, verdict):
    word, d = stats.value_verdict(ours, 96.0, 1.0)
    assert word == verdict
    assert d is None if not ours else d.mean == pytest.approx(np.mean(ours) - 96)


def test_an_interval_that_touches_the_margin_from_below_is_inconclusive(monkeypatch):
    monkeypatch.setattr(stats, "t_interval", lambda v: stats.Interval(-2.0, -3.0, -1.0, 3))
    assert stats.value_verdict([1.0], 0.0, 1.0)[0] == "inconclusive"


# --- a small project with made-up records ---

SEEDS = [0, 1, 2, 3]
READINGS = ("binary", "exact", "mean", "half")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with a configuration, and `put`, which makes up the runs of an arm."""
    monkeypatch.chdir(tmp_path)
    densities = {"density": [0.5, 0.1]}
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}
    arms = {
        "ours": {"method": "crbg", "grid": densities},
        "quiet": {"method": "crbg", "set": {"options.noise": 0.0}, "grid": densities},
        "theirs": {"method": "edge_popup", "grid": densities},
        "dense": {"method": "dense"},
    }
    other = {"ours": {"method": "crbg", "set": {"options.source": "antithetic"}, "grid": {"density": [0.5]}}}
    experiments = {
        "main": {"about": "ours & theirs", "role": "main", "seeds": SEEDS, "base": base, "arms": arms},
        "other": {"about": "another noise", "role": "ablation", "against": "main", "seeds": SEEDS, "base": base, "arms": other},
        "tuning": {
            "role": "tune",
            "seeds": SEEDS[:2],
            "base": base | {"epochs": 1},
            "arms": {"ours": {"method": "crbg", "grid": densities | {"options.lr": [0.02, 0.04]}}},
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": experiments}, sort_keys=False))
    Path("demo.yaml").write_text(yaml.safe_dump({"results": "demo", "paper": "demo/paper", "scale": {"limit": 640}}))
    Path("paper").mkdir()
    Path("paper/claims.yaml").write_text(yaml.safe_dump({"claims": [], "contrasts": []}))
    return Project()


class Project:
    """Records that look like those of runs, with the accuracies that a test asks for."""

    def __init__(self):
        self.config = configs.read(["config.yaml"])

    def demonstrate(self):
        self.config = configs.read(["config.yaml", "demo.yaml"])

    def cells(self, arm, density, experiment="main"):
        return [c for c in self.config.experiment(experiment).cells if (c.arm, c.spec.density) == (arm, density)]

    def put(self, arm, density, accuracies, experiment="main", draw="d", order="o", missed=False, sanity=None, tested=True, **readings):
        for i, cell in enumerate(self.cells(arm, density, experiment)[: len(accuracies)]):
            where = record_store.run_folder(self.config, cell.spec, cell.seed)
            seen = {r: {"accuracy": readings.get(r, accuracies)[i], "density": density or 1.0} for r in READINGS}
            part = {"readings": seen, "sanity": {k: {"accuracy": v[i]} for k, v in (sanity or {}).items()}, "density_missed": missed}
            lower = json.loads(json.dumps(part))
            for reading in lower["readings"].values():
                reading["accuracy"] -= 1
            digests = {"draw": f"{draw}{cell.seed}", "order": f"{order}{cell.seed}"}
            record = {"digest": cell.spec.digest(), "status": "ok", "digests": digests, "validation": lower}
            write_json(where / "record.json", record)
            write_json(where / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 2.0 + i})
            (where / "evaluation.json").unlink(missing_ok=True)
            if tested:
                write_json(where / "evaluation.json", {"test": part})

    def judge(self, *rules, contrasts=()):
        made = [{"id": f"c{i}", "source": "s", "quote": "q", "kind": "k", "reading": "r", "rule": rule} for i, rule in enumerate(rules)]
        return claims.judge({"claims": made, "contrasts": list(contrasts)}, tidy(self.config), self.config)

    def verdict(self, **rule):
        return self.judge({"experiment": "main", "arm": "ours"} | rule)[0]


def around(middle, spread=0.1):
    """Four accuracies with this mean; their 95 % interval reaches 1.3 x spread to both sides."""
    return [middle - spread, middle, middle, middle + spread]


def reach(spread):
    return 3.182446 * math.sqrt(2 * spread**2 / 3) / 2


# --- tables ---


def test_the_main_table_shows_mean_and_interval(project):
    project.put("ours", 0.5, [90.0, 91.0, 92.0, 93.0], exact=[80.0, 80.0, 81.0, 81.0], sanity={"reinit": [10.0, 11.0, 12.0, 13.0]})
    project.put("ours", 0.1, [70.0], missed=True, sanity={"reinit": [30.0]})
    project.put("dense", None, around(98.0))
    table = tables.main_table(tidy(project.config), "main").set_index(["arm", "sparsity %"])
    # s = 1.29099, t(0.975, 3) = 3.18245: half = 3.18245 x 1.29099 / 2 = 2.0543; for `exact` s = 0.57735, half = 0.9187.
    line = table.loc[("ours", "50.0")]
    assert line["binary %"] == "91.50 ± 2.05"
    assert line["exact %"] == "80.50 ± 0.92"
    assert (line["reinit %"], line["shuffle %"], line["n"], line["missed"], line["search s"]) == ("11.5", "", "4", "0", "4")
    short = table.loc[("ours", "90.0")]
    assert (short["binary %"], short["reinit %"], short["n"], short["missed"]) == ("70.00 (n = 1)", "30.0", "1", "1")
    assert len(table) == 3


def test_headline_numbers_are_of_the_test_part_where_it_was_opened(project):
    project.put("ours", 0.5, around(90.0), tested=False)
    assert tables.main_table(tidy(project.config), "main")["binary %"][0].startswith("89.00")
    project.put("ours", 0.5, around(90.0))
    assert tables.main_table(tidy(project.config), "main")["binary %"][0].startswith("90.00")


def test_rows_of_an_arm_come_by_seed(project):
    project.put("ours", 0.5, [1.0, 2.0, 3.0, 4.0])
    project.put("ours", 0.1, [5.0, 6.0, 7.0, 8.0])
    rows = tidy(project.config).sample(frac=1, random_state=0)
    assert list(values(rows, "main", "ours", 0.5).accuracy) == [1, 2, 3, 4]
    assert list(values(rows, "main", "ours", 0.1, "validation", "mean").accuracy) == [4, 5, 6, 7]
    assert values(rows, "main", "ours", None).empty
    project.put("dense", None, around(9.0))
    assert len(values(tidy(project.config), "main", "dense", None)) == 4


def test_an_ablation_is_compared_seed_by_seed(project):
    project.put("ours", 0.5, [90.0, 91.0, 92.0, 93.0])
    project.put("ours", 0.5, [90.5, 91.5, 92.7, 93.7], experiment="other", tested=False)
    table = tables.ablation_table(tidy(project.config), project.config.experiment("other"))
    # Differences 0.5, 0.5, 0.7, 0.7: mean 0.6, s = 0.11547, half = 3.18245 x 0.11547 / 2 = 0.184.
    assert list(table["difference to main (paired)"]) == ["+0.60 [+0.42, +0.78], n = 4"]
    project.put("ours", 0.5, [90.5, 91.5, 92.7, 93.7], experiment="other", tested=False, order="x")
    table = tables.ablation_table(tidy(project.config), project.config.experiment("other"))
    assert list(table["difference to main (paired)"]) == ["no pairs"]


def test_tuning_trials_are_listed_best_first(project):
    project.put("ours", 0.5, [80.0, 82.0, 84.0, 86.0], experiment="tuning", tested=False)  # two settings, two seeds each
    project.put("ours", 0.1, [60.0, 60.0], experiment="tuning", tested=False, missed=True)
    text = tables.tuning_table(tidy(project.config))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert [r[3] for r in rows] == ["lr 0.02", "lr 0.04", "lr 0.02"]
    assert [(r[2], r[5], r[6], r[7]) for r in rows] == [("0.1", "59.00", "2", "2"), ("0.5", "84.00", "2", "0"), ("0.5", "80.00", "2", "0")]


def test_every_arm_has_its_number_in_tex(project):
    project.put("ours", 0.5, [90.0, 91.0, 92.0, 93.0])
    project.put("dense", None, [98.0])
    project.put("ours", 0.5, [90.5, 91.0, 91.0, 93.5], experiment="other", tested=False)
    project.put("ours", 0.1, around(70.0), experiment="tuning")
    verdict = claims.Verdict("c 1", "s", "q", "reproduced", "91.5 % [90, 93]. Reading: r")
    found = numbers.collect(tidy(project.config), [verdict], project.config)
    assert {k: found[k] for k in ("main.ours.0.5", "main.ours.0.5.n", "main.ours.0.5.sparsity", "main.dense.none")} == {
        "main.ours.0.5": "91.50 ± 2.05", "main.ours.0.5.n": "4", "main.ours.0.5.sparsity": "50.0", "main.dense.none": "98.00 (n = 1)",
    }  # fmt: skip
    assert found["main.ours.0.5.digest"] == project.cells("ours", 0.5)[0].spec.digest()
    assert found["other.ours.0.5"].startswith("90.50")  # validation, one point below
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
    numbers.check(paper, {})  # no paper, nothing to refuse
    (tmp_path / "t.tex").write_text("")
    paper.write_text("% \\crbgnumber{not.read}\n\\crbgnumber{a.b} \\input{t} \\input{t.tex}\n")
    numbers.check(paper, {"a.b": "1"})
    paper.write_text("one\n\\num{a.b} and \\pct{a.c}\n\\includegraphics[width=1cm]{figures/x}\n")
    with pytest.raises(CrbgError) as caught:
        numbers.check(paper, {"a.b": "1"})
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{paper}:2: unknown number 'a.c': did you mean 'a.b'?")
    assert second.startswith(f"{paper}:3: figures/x is not there")
    assert numbers.check(paper, {"a.b": "1"}, ["a", "x"]) == 2  # what waits for an unfinished experiment is no mistake
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
    write_json(where / "record.json", {"digest": cell.spec.digest(), "status": "collapse", "digests": {"draw": "d", "order": "o"}})
    (where / "evaluation.json").unlink()
    rows = tidy(project.config)
    assert len(rows[rows.status == "collapse"]) == 1
    assert list(values(rows, "main", "ours", 0.5).seed) == [1, 2, 3]
    assert unfinished(project.config, rows) == {"main": 24, "other": 4, "tuning": 8}


# --- methods side by side ---


def test_sparsity_at_equal_accuracy_is_read_both_ways(project):
    project.put("ours", 0.5, around(97.0))
    project.put("ours", 0.1, around(96.6))
    project.put("theirs", 0.5, around(97.2))
    project.put("theirs", 0.1, around(96.4))
    table = compare.equal_accuracy(tidy(project.config), project.config.experiment("main"), ("theirs", "ours")).set_index("arm")
    assert list(table) == ["within 0.5 of theirs (97.20 % at 50 %)", "within 0.5 of ours (97.00 % at 50 %)"]
    assert list(table.loc["ours"]) == ["50 %", "90 %"]
    assert list(table.loc["theirs"]) == ["50 %", "50 %"]
    project.put("ours", 0.5, around(80.0))
    project.put("ours", 0.1, around(79.0))
    assert (
        compare.equal_accuracy(tidy(project.config), project.config.experiment("main"), ("theirs",)).set_index("arm").loc["ours"].item()
        == "nowhere"
    )


def test_step_ratios_are_those_of_the_benchmark(tmp_path):
    table = tmp_path / "step.md"
    lines = ("step | median ms | ratio", ":--|--:|--:", "dense | 3.82 | 1.00 | 1 | 1", "gated, normal, controlled | 5.99 | 1.58 | 1 | 2")
    table.write_text("".join(f"| {line} |\n" for line in lines))
    assert compare.step_ratios(table) == {"dense": "1.00", "gated, normal, controlled": "1.58"}
    assert compare.step_ratios(tmp_path / "absent.md") == {}
    assert set(compare.ROWS.values()) <= set(compare.step_ratios(ROOT / "benchmarks/step.md"))


def test_properties_say_what_was_tuned_what_failed_and_what_the_controls_say(project):
    Path("more.yaml").write_text(yaml.safe_dump({"experiments": {"main": {"tuned_by": "tuning", "view": "methods"}}}))
    project.config = configs.read(["config.yaml", "more.yaml"])
    project.put("ours", 0.1, around(96.0), mean=around(97.0), sanity={"reinit": [10.0] * 4, "shuffle": [12.0] * 4, "invert": [9.0] * 4})
    project.put("theirs", 0.1, around(95.0), sanity={"reinit": [10.0] * 4, "shuffle": [40.0] * 4, "invert": [9.0] * 4})
    for i, cell in enumerate(project.cells("ours", 0.1, "tuning")):
        where = record_store.run_folder(project.config, cell.spec, cell.seed)
        status = {"status": "collapse", "reason": "closed"} if i == 0 else {"status": "ok"}
        seen = {} if i == 0 else {"validation": {"readings": {"binary": {"accuracy": 40.0 + 20 * i, "density": 0.1}}}}
        write_json(where / "record.json", {"digest": cell.spec.digest(), "digests": {"draw": "d", "order": "o"}} | status | seen)
        write_json(where / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 1.0})
    table = compare.properties(tidy(project.config), project.config.experiment("main"), project.config).set_index("arm")
    ours, theirs = table.loc["ours"], table.loc["theirs"]
    assert (ours["tuned"], theirs["tuned"]) == ("lr", "")
    assert ours["trials below 50 %"] == "1 of 4"
    assert (ours["real-valued gates"], ours["shuffle"], ours["finds weights"]) == ("97.0", "12", "yes")
    assert theirs["finds weights"] == "in part"
    assert "accuracy at 0.1" in table  # the sparsest, where 0.05 was not asked for
    assert ours["step / dense"] == "", "steps were timed in another network"
    assert ours["collapsed"] == "0 of 4"
    project.put("theirs", 0.1, around(9.0), sanity={"reinit": [10.0] * 4, "shuffle": [10.0] * 4, "invert": [9.0] * 4})
    chance = compare.properties(tidy(project.config), project.config.experiment("main"), project.config).set_index("arm").loc["theirs"]
    assert chance["finds weights"] == ""  # a ticket at chance is no evidence for its method
    assert ours["gradient"] == methods.get("crbg").TRAITS.gradient
    assert methods.get("crbg").TRAITS.differentiable
    assert not methods.get("edge_popup").TRAITS.differentiable


# --- claims ---


@pytest.mark.parametrize(
    ("middle", "verdict"),
    [(97.5, "exceeded"), (96.5, "reproduced"), (95.05, "inconclusive"), (94.0, "not reproduced")],
)
def test_value_rule(project, middle, verdict):
    rule = {"type": "value", "density": 0.5, "published": 96.0, "margin": 1.0}
    assert project.verdict(**rule).verdict == "not run"
    project.put("ours", 0.5, around(middle))
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"{middle:.2f} % at 50.0 % sparsity" in out.evidence
    assert out.evidence.endswith("Reading: r")


def test_value_rule_does_not_judge_a_missed_density(project):
    project.put("ours", 0.5, around(96.0), missed=True)
    out = project.verdict(type="value", density=0.5, published=96.0, margin=1.0)
    assert out.verdict == "not run"
    assert "density missed in 4 of 4 runs" in out.evidence


@pytest.mark.parametrize(("natural", "verdict"), [(0.45, "reproduced"), (0.509, "reproduced"), (0.52, "not run"), (None, "not run")])
def test_value_rule_takes_a_natural_mask_that_is_sparser_than_asked(project, natural, verdict):
    project.put("ours", 0.5, around(80.0), half=around(96.0), missed=True)
    for cell in project.cells("ours", 0.5):
        path = record_store.run_folder(project.config, cell.spec, cell.seed) / "record.json"
        write_json(path, read_json(path) | {"anatomy": {"epochs": [{"density": 0.9}, {"density": natural}] if natural else []}})
    rule = {"type": "value", "density": 0.5, "published": 96.0, "margin": 1.0}
    assert project.verdict(**rule).verdict == "not run"
    assert project.verdict(**rule, mask="half").verdict == verdict


@pytest.mark.parametrize(("at", "verdict"), [(1.0, "reproduced"), (0.99, "not reproduced")])
def test_value_rule_of_a_method_without_a_density_looks_at_what_it_kept(project, at, verdict):
    project.put("dense", None, around(96.0))
    assert project.verdict(type="value", arm="dense", density=None, published=96.0, at=at, margin=1.0).verdict == verdict


def test_value_rule_may_ask_for_another_reading(project):
    project.put("ours", 0.5, around(90.0), mean=around(96.0))
    rule = {"type": "value", "density": 0.5, "published": 96.0, "margin": 1.0}
    assert project.verdict(**rule).verdict == "not reproduced"
    assert project.verdict(**rule, mask="mean").verdict == "reproduced"


@pytest.mark.parametrize(
    ("theirs", "quiet", "verdict"),
    [(95.0, 94.0, "reproduced"), (96.0, 94.0, "inconclusive"), (97.0, 94.0, "not reproduced"), (95.0, None, "not run")],
)
def test_best_rule_asks_for_more_than_every_other(project, theirs, quiet, verdict):
    rule = {"type": "best", "density": 0.5, "others": ["theirs", "quiet"]}
    assert project.verdict(**rule).verdict == "not run"
    project.put("ours", 0.5, [96.0, 96.1, 96.2, 96.3])
    project.put("theirs", 0.5, [theirs + d for d in (0.2, 0.1, 0.2, 0.1)], draw="other law")
    if quiet:
        project.put("quiet", 0.5, [quiet + d for d in (0.0, 0.1, 0.2, 0.3)])
    out = project.verdict(**rule)
    assert out.verdict == verdict
    cell = project.cells("ours", 0.5)[0]
    where = record_store.run_folder(project.config, cell.spec, cell.seed)
    if quiet:
        assert "- quiet +2.00 [+2.00, +2.00]" in out.evidence  # paired, so without spread
        assert f"- theirs {96.15 - theirs - 0.15:+.2f} [" in out.evidence
        (where / "evaluation.json").unlink()
        write_json(where / "record.json", read_json(where / "record.json") | {"status": "collapse", "reason": "closed"})
        out = project.verdict(**rule)
        assert (out.verdict, "1 runs of ours collapsed" in out.evidence) == ("inconclusive", True)


@pytest.mark.parametrize(("epochs", "verdict", "n"), [(2, "reproduced", 4), (3, "inconclusive", 2)])
def test_more_seeds_of_the_same_spec_are_taken_where_a_rule_names_them(project, epochs, verdict, n):
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64, "density": 0.5}
    arms = {"ours": {"method": "crbg"}, "theirs": {"method": "edge_popup", "set": {"epochs": epochs}}}
    few = {"role": "main", "seeds": SEEDS[:2], "base": base, "arms": arms}
    Path("few.yaml").write_text(yaml.safe_dump({"experiments": {"few": few}}))
    project.config = configs.read(["config.yaml", "few.yaml"])
    project.put("ours", 0.5, [96.0, 96.2, 96.1, 96.2])
    project.put("theirs", 0.5, [95.8, 95.0, 95.1, 95.0])
    project.put("theirs", 0.5, [95.8, 95.0], experiment="few")
    rule = {"type": "best", "experiment": "few", "arm": "ours", "density": 0.5, "others": ["theirs"]}
    assert project.judge(rule)[0].verdict == "inconclusive"
    out = project.judge(rule | {"wider": "main"})[0]
    assert out.verdict == verdict
    assert ("(n = 4)" in out.evidence) == (n == 4), "another spec is no more seeds of the same"


def test_the_readme_says_with_its_numbers_what_comes_from_jpeg(project):
    project.put("ours", 0.5, around(90.0))
    rows = tidy(project.config)
    assert "JPEG" not in tables.readme_table(project.config.experiment("main"), rows)
    rows["lossy"], rows["lossy_test"] = 104, 23
    text = tables.readme_table(project.config.experiment("main"), rows)
    assert text.endswith("104 images of the data (23 of the test part) come from JPEG copies.\n")


def test_redrawn_weights_are_named_in_the_table(project):
    project.put("theirs", 0.5, around(90.0))
    assert "trained" not in tables.main_table(tidy(project.config), "main")
    for cell in project.cells("theirs", 0.5):
        path = record_store.run_folder(project.config, cell.spec, cell.seed) / "record.json"
        write_json(path, read_json(path) | {"roles": {"redrawn": ["fc1.weight"]}})
    assert list(tables.main_table(tidy(project.config), "main").trained) == ["weights redrawn"]


@pytest.mark.parametrize(("gap", "verdict"), [(1.0, "reproduced"), (2.05, "inconclusive"), (3.0, "not reproduced")])
def test_gap_rule(project, gap, verdict):
    rule = {"type": "gap", "density": 0.5, "most": 2.0}
    assert project.verdict(**rule).verdict == "not run"
    # The halves differ by seed, so an unpaired interval of the means would be far wider.
    hard = [80.0, 85.0, 90.0, 95.0]
    project.put("ours", 0.5, around(50.0), half=hard, mean=[h + g for h, g in zip(hard, around(gap), strict=True)])
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"mean - half = {gap:+.2f} points [{gap - reach(0.1):+.2f}, {gap + reach(0.1):+.2f}]" in out.evidence


@pytest.mark.parametrize(("loss", "verdict"), [(-1.0, "reproduced"), (0.5, "reproduced"), (1.05, "inconclusive"), (3.0, "not reproduced")])
def test_loss_rule(project, loss, verdict):
    rule = {"type": "loss", "density": 0.1, "reference": "dense", "most": 1.0}
    project.put("ours", 0.1, around(95.0 - loss))
    assert project.verdict(**rule).verdict == "not run"
    project.put("dense", None, around(95.0)[::-1])
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"dense - ours = {loss:+.2f} points" in out.evidence


@pytest.mark.parametrize(
    ("reinit", "invert", "verdict"),
    [(10.0, 20.0, "reproduced"), (24.95, 10.0, "inconclusive"), (10.0, 26.0, "not reproduced"), (24.95, 26.0, "not reproduced")],
)
def test_sanity_rule(project, reinit, invert, verdict):
    rule = {"type": "sanity", "density": 0.5, "at_most": {"reinit": 25.0, "invert": 25.0}}
    assert project.verdict(**rule).verdict == "not run"
    project.put("ours", 0.5, around(96.0), sanity={"reinit": around(reinit), "invert": around(invert), "shuffle": around(90.0)})
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"reinit {reinit:.1f} %" in out.evidence
    assert "shuffle" not in out.evidence


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (90.0, 80.0, "reproduced"),
        (88.0, 80.0, "not reproduced"),  # ours is worse than theirs at twice the density
        (90.0, 90.0, "not reproduced"),  # theirs reaches it as well
        (89.5, 80.0, "inconclusive"),
        (90.0, 89.5, "inconclusive"),
    ],
)
def test_frontier_rule(project, ours, theirs, verdict):
    rule = {"type": "frontier", "other": "theirs", "density": 0.1, "reference_density": 0.5, "margin": 0.5}
    project.put("ours", 0.1, around(ours))
    project.put("theirs", 0.1, around(theirs))
    assert project.verdict(**rule).verdict == "not run"
    project.put("theirs", 0.5, [90.1, 89.9, 90.0, 90.0])
    assert project.verdict(**rule).verdict == verdict


def test_a_claim_without_a_rule_was_not_run(project):
    out = project.judge(None)[0]
    assert (out.verdict, out.id) == ("not run", "c0")
    assert "no runs in this version" in out.evidence


@pytest.mark.parametrize(("level", "verdict"), [(90.0, "reproduced"), (88.95, "inconclusive"), (88.0, "not reproduced")])
def test_floor_rule(project, level, verdict):
    rule = {"type": "floor", "density": 0.5, "least": 89.0}
    assert project.verdict(**rule).verdict == "not run"
    project.put("ours", 0.5, around(level))
    assert project.verdict(**rule).verdict == verdict
    project.put("ours", 0.5, around(level), missed=True)
    assert project.verdict(**rule).verdict == "not run"


@pytest.mark.parametrize(("level", "word"), [(90.0, "met"), (89.05, "met in the mean"), (88.0, "missed")])
def test_goals_are_met_or_missed(project, level, word):
    goal = {"experiment": "main", "arm": "ours", "density": 0.5, "least": 89.0}

    def judged():
        return claims.judge({"claims": [], "goals": [goal], "contrasts": []}, tidy(project.config), project.config)[0]

    assert judged().verdict == "not run"
    project.put("ours", 0.5, around(level))
    assert (judged().verdict, judged().id) == (word, "goal 89.0 % at 50 %")
    project.put("ours", 0.5, around(level), missed=True)
    assert judged().verdict == "missed"


GRID = {
    "sweep": {
        "role": "ablation", "seeds": SEEDS, "base": {"data": "digits", "model": "lenet-16", "method": "crbg", "epochs": 2, "batch": 64},
        "arms": {
            "knobs": {"grid": {"options.weight": [1.0, 10.0], "options.mu0": [0.25, 1.0]}},
            "kinds": {"grid": {"options.penalty": ["induce_sparse", "induce_decision"], "options.weight": [1.0, 2.0]}},
        },
    },
    "widths": {
        "role": "main", "view": "width", "seeds": SEEDS, "base": {"data": "digits", "density": 0.5, "epochs": 2, "batch": 64},
        "arms": {
            "ours": {"method": "crbg", "grid": {"model": ["lenet-100", "lenet-10"]}},
            "dense": {"method": "dense", "set": {"density": None}, "grid": {"model": ["lenet-100", "lenet-10"]}},
        },
    },
}  # fmt: skip


@pytest.fixture
def sweep(project):
    """The small project with a sweep and a width experiment, and `put` for one spec of them."""
    Path("sweep.yaml").write_text(yaml.safe_dump({"experiments": GRID}))
    project.config = configs.read(["config.yaml", "sweep.yaml"])

    def put(experiment, where, accuracies, density=0.5, gated=100, soft=None):
        hits = [c for c in project.config.experiment(experiment).cells if where(c)]
        assert len(hits) == len(accuracies)
        each = density if isinstance(density, list) else [density] * len(hits)
        for cell, value, kept in zip(hits, accuracies, each, strict=True):
            part = {"readings": {"binary": {"accuracy": value, "density": kept}}}
            if soft is not None:
                part["readings"]["mean"] = {"accuracy": soft, "density": 1.0}
            record = {"digest": cell.spec.digest(), "status": "ok", "digests": {"draw": f"d{cell.seed}", "order": f"o{cell.seed}"}}
            folder = record_store.run_folder(project.config, cell.spec, cell.seed)
            write_json(folder / "record.json", record | {"validation": part, "gated": gated})
            write_json(folder / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 2.0})
            if experiment == "widths":
                write_json(folder / "evaluation.json", {"test": part})

    project.fill = put
    return project


def knob(weight, mu0):
    return lambda c: c.arm == "knobs" and (c.spec.resolved().weight, c.spec.resolved().mu0) == (weight, mu0)


@pytest.mark.parametrize(
    ("weak", "strong", "verdict"),  # densities at weight 1 and 10, where the gates start open
    [(0.5, 0.45, "reproduced"), (0.5, 0.5, "not reproduced"), (0.5, 0.55, "not reproduced"), (0.5, [0.4, 0.4, 0.4, 0.51], "inconclusive")],
)
def test_a_knob_controls_sparsity_where_it_raises_it_at_every_value_of_the_other(sweep, weak, strong, verdict):
    rule = {"type": "controls", "experiment": "sweep", "arm": "knobs", "knob": "weight", "other": "mu0"}
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("sweep", knob(1.0, 0.25), around(90), 0.4)
    sweep.fill("sweep", knob(10.0, 0.25), around(90), 0.1)
    sweep.fill("sweep", knob(1.0, 1.0), around(90), weak)
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("sweep", knob(10.0, 1.0), around(90), strong)
    out = sweep.judge(rule)[0]
    assert out.verdict == verdict
    assert "+30.0 [+30.0, +30.0] at mu0 0.25" in out.evidence
    assert "n = 4, validation" in out.evidence


@pytest.mark.parametrize(("worst", "verdict"), [(89.5, "reproduced"), (89.05, "inconclusive"), (80.0, "not reproduced")])
def test_flat_rule(sweep, worst, verdict):
    rule = {"type": "flat", "experiment": "sweep", "arm": "knobs", "most": 1.0}
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("sweep", knob(1.0, 0.25), around(90))
    sweep.fill("sweep", knob(1.0, 1.0), around(89.9))
    sweep.fill("sweep", knob(10.0, 0.25), around(worst))
    assert sweep.judge(rule)[0].verdict == verdict


def kind(penalty, weight):
    return lambda c: c.arm == "kinds" and (c.spec.resolved().penalty, c.spec.resolved().weight) == (penalty, weight)


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "reproduced"), (0.0, "inconclusive"), (-1.0, "not reproduced")])
def test_order_rule_takes_the_best_of_each(sweep, gain, verdict):
    rule = {"type": "order", "experiment": "sweep", "arm": "kinds", "field": "penalty", "a": "induce_decision", "b": "induce_sparse"}
    assert sweep.judge(rule)[0].verdict == "not run"

    base = [80.0, 85.0, 90.0, 95.0]  # paired by seed, or the spread would drown the difference
    sweep.fill("sweep", kind("induce_sparse", 1.0), base, 0.2)
    sweep.fill("sweep", kind("induce_sparse", 2.0), [b - 5 for b in base], 0.1)
    sweep.fill("sweep", kind("induce_decision", 1.0), [b - 9 for b in base], 0.4)
    sweep.fill("sweep", kind("induce_decision", 2.0), [b + g for b, g in zip(base, around(gain), strict=True)], 0.3)
    out = sweep.judge(rule)[0]
    assert out.verdict == verdict
    assert "70.0 % sparsity (penalty induce_decision, weight 2.0)" in out.evidence
    assert "80.0 % sparsity (penalty induce_sparse, weight 1.0)" in out.evidence


@pytest.mark.parametrize(
    ("wide", "narrow", "verdict"),
    [(97.0, 92.0, "exceeded"), (95.0, 92.0, "reproduced"), (95.0, 88.0, "not reproduced"), (95.0, 89.2, "inconclusive")],
)
def test_width_rule_judges_every_point(sweep, wide, narrow, verdict):
    Path("paper/published.yaml").write_text(yaml.safe_dump({"width": [{"weights": 100, "accuracy": 95}, {"weights": 11, "accuracy": 90}]}))
    rule = {"type": "width", "experiment": "widths", "arm": "ours", "margin": 0.8}
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(wide), gated=1000)
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-10", around(narrow), gated=110)
    out = sweep.judge(rule)[0]
    assert out.verdict == verdict
    assert f"11.0 %: {narrow - 90:+.1f}" in out.evidence
    assert "real-valued" not in out.evidence
    for model, gated in (("lenet-100", 1000), ("lenet-10", 110)):
        sweep.fill("widths", lambda c, m=model: c.arm == "ours" and c.spec.model == m, around(50.0), gated=gated, soft=90.0)
    assert "0 of 2 points reached (1 by the real-valued gates)" in sweep.judge(rule)[0].evidence, "90 is enough for the second alone"


@pytest.mark.parametrize(("narrow", "verdict"), [(89.5, "reproduced"), (89.0, "inconclusive"), (85.0, "not reproduced")])
def test_steady_rule_looks_at_the_gap_of_every_width(sweep, narrow, verdict):
    rule = {"type": "steady", "experiment": "widths", "arm": "ours", "reference": "dense", "most": 1.0}
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(96), gated=1000)
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("widths", lambda c: c.arm == "dense" and c.spec.model == "lenet-100", around(96.5), gated=1000)
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-10", around(narrow), gated=110)
    sweep.fill("widths", lambda c: c.arm == "dense" and c.spec.model == "lenet-10", around(90), gated=110)
    out = sweep.judge(rule)[0]
    assert out.verdict == verdict
    assert f"100.0 %: 0.5, 11.0 %: {90 - narrow:.1f}" in out.evidence


@pytest.mark.parametrize("view", ["dots", "lines", "penalties", "cost"])
def test_every_view_draws_an_ablation(sweep, view):
    body = {"experiments": {"sweep": {"view": view, "x": "options.mu0", "arms": {"shared": {}}}}}
    Path("view.yaml").write_text(yaml.safe_dump(body))
    sweep.config = configs.read(["config.yaml", "sweep.yaml", "view.yaml"])
    if view != "lines":
        for penalty in ("induce_sparse", "induce_decision"):
            for weight in (1.0, 2.0):
                sweep.fill("sweep", kind(penalty, weight), around(90))
    else:
        for weight, mu0 in ((1.0, 0.25), (1.0, 1.0), (10.0, 1.0)):
            sweep.fill("sweep", knob(weight, mu0), around(90))
    build(sweep.config, "sweep")
    assert Path("paper/figures/sweep.png").read_bytes().startswith(b"\x89PNG")
    table = Path("paper/tables/sweep.md").read_text()
    assert ("mu0 0.25, weight 1.0" if view == "lines" else "penalty induce_sparse, weight 1.0") in table
    assert ("| shared" in table) == (view != "lines")  # its only run is one of another arm's
    assert "reference" in table
    assert r"\begin{tabular}" in Path("paper/tables/sweep.tex").read_text()


def test_the_width_view_draws_what_is_there(sweep):
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(96), gated=1000)
    build(sweep.config, "widths")
    sweep.fill("widths", lambda c: c.arm == "dense" and c.spec.model == "lenet-100", around(97), gated=1000)
    alone = Path("paper/figures/widths.png").read_bytes()
    build(sweep.config, "widths")
    assert Path("paper/figures/widths.png").read_bytes() != alone


def test_the_comparison_sets_published_beside_measured(project):
    project.put("ours", 0.5, around(90.0))
    lines = [
        {"row": "ours", "published": "96 % at 45 %", "experiment": "main", "arm": "ours", "density": 0.5},
        {"row": "dense", "published": "", "experiment": "main", "arm": "dense", "density": None},
        {"row": "somebody's", "published": "98 % at 97 %"},
    ]
    table = tables.comparison(lines, tidy(project.config)).set_index("row")
    assert list(table.loc["ours"][["published", "measured %", "sparsity %", "n"]]) == ["96 % at 45 %", "90.00 ± 0.13", "50.0", "4"]
    assert list(table["measured %"]) == ["90.00 ± 0.13", "not run", "not run"]
    project.put("ours", 0.5, around(90.0), missed=True)
    assert tables.comparison(lines, tidy(project.config)).set_index("row").loc["ours", "sparsity %"] == "50.0, missed by 4 and cut"


def test_loss_rule_may_take_its_reference_from_another_experiment(sweep):
    rule = {"type": "loss", "experiment": "main", "arm": "ours", "density": 0.5, "reference": "dense", "most": 1.0}
    sweep.put("ours", 0.5, around(90))
    sweep.put("dense", None, around(90.2))
    assert sweep.judge(rule)[0].verdict == "reproduced"
    assert sweep.judge(rule | {"reference_experiment": "widths"})[0].verdict == "not run"


CONTRAST = {"experiment": "main", "a": "ours", "b": "quiet", "density": 0.5}


def test_runs_that_share_draw_and_order_are_paired(project):
    base, gain = [80.0, 85.0, 90.0, 95.0], around(1.0)
    project.put("ours", 0.5, [b + g for b, g in zip(base, gain, strict=True)])
    for change, test, word in (
        ({}, "paired t", "ours is better"),
        ({"draw": "x"}, "Welch", "indistinguishable"),
        ({"order": "x"}, "Welch", "indistinguishable"),
    ):
        project.put("quiet", 0.5, base, **change)
        out = project.judge(contrasts=[CONTRAST])[0]
        assert out.verdict == word
        assert f", {test}, n = 4" in out.evidence
        assert out.evidence.startswith("+1.00 points [")
    project.put("quiet", 0.5, base)
    assert project.judge(contrasts=[CONTRAST | {"a": "quiet", "b": "ours"}])[0].verdict == "ours is better"
    # With a seed missing on one side there are no pairs to speak of.
    project.put("theirs", 0.5, base[:3])
    assert ", Welch, n = 3" in project.judge(contrasts=[CONTRAST | {"b": "theirs"}])[0].evidence


def test_contrasts_are_corrected_together(project):
    project.put("ours", 0.5, [b + 1 for b in around(90.0, 0.5)])
    project.put("quiet", 0.5, around(90.0, 0.5), draw="x")
    project.put("ours", 0.1, around(90.0, 0.5))
    project.put("quiet", 0.1, around(90.0, 0.5), draw="x")
    p = stats.welch(around(91.0, 0.5), around(90.0, 0.5)).p
    alone, together = (project.judge(contrasts=[CONTRAST, *more])[0].evidence for more in ([], [CONTRAST | {"density": 0.1}]))
    assert alone.endswith(f"Holm p = {p:.2g}")
    assert together.endswith(f"Holm p = {2 * p:.2g}")
    missing = project.judge(contrasts=[CONTRAST | {"b": "theirs"}])[0]
    assert (missing.verdict, missing.evidence) == ("not run", "no runs")


def test_contrasts_say_when_they_were_declared_and_are_corrected_list_by_list(project):
    project.put("ours", 0.5, [b + 1 for b in around(90.0, 0.5)])
    project.put("quiet", 0.5, around(90.0, 0.5), draw="x")
    alone = project.judge(contrasts=[CONTRAST])[0]
    lists = {"first_contrasts": [CONTRAST], "contrasts": [CONTRAST], "later_contrasts": [CONTRAST, CONTRAST | {"density": 0.1}]}
    first, second, later, _ = claims.judge({"claims": [], **lists}, tidy(project.config), project.config)
    assert [v.id.partition("density 0.5")[2] for v in (first, second, later)] == [" (first round)", "", " (asked later)"]
    assert "before the first round" in first.source
    assert "the first had been read" in second.source
    assert first.evidence == second.evidence == alone.evidence
    assert later.evidence != alone.evidence


def test_a_run_of_less_than_the_published_search_refutes_nothing(project):
    project.put("ours", 0.5, around(90.0))
    rule = {"type": "value", "experiment": "main", "arm": "ours", "density": 0.5, "published": 96.0, "margin": 1.0}
    short = rule | {"shorter": "a tenth"}
    assert [project.judge(r)[0].verdict for r in (rule, short)] == ["not reproduced", "inconclusive"]
    assert "after a tenth of the published search" in project.judge(short)[0].evidence
    project.put("ours", 0.5, around(96.0))
    assert project.judge(short)[0].verdict == "reproduced"


def test_a_demonstration_judges_nothing(project):
    project.demonstrate()
    project.put("ours", 0.5, around(96.0))
    project.put("quiet", 0.5, around(96.0))
    out = project.judge({"type": "value", "experiment": "main", "arm": "ours", "density": 0.5, "published": 96.0, "margin": 1.0}, None)
    assert [v.verdict for v in out] == ["not run", "not run"]
    assert all("a demonstration judges nothing" in v.evidence for v in out)
    assert len(project.judge(contrasts=[CONTRAST])) == 0
    assert claims.verdict_table(out, project.config).startswith("**A demonstration: nothing is judged.**")


GOOD = {"id": "a", "source": "s", "quote": "q", "kind": "value", "reading": "r", "rule": None}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"claims": [GOOD | {"verdict": "true"}], "contrasts": []}, "unknown ['verdict']"),
        ({"claims": [{k: v for k, v in GOOD.items() if k != "quote"}], "contrasts": []}, "claim 'a' lacks ['quote']"),
        ({"claims": [GOOD | {"rule": {"type": "valeu"}}], "contrasts": []}, "claim 'a': did you mean 'value'?"),
        ({"claims": [], "contrasts": [CONTRAST] * 9}, "9 contrasts are declared; the protocol allows 8"),
        ({"claims": [], "contrasts": [], "later_contrasts": [CONTRAST] * 9}, "9 later contrasts are declared"),
    ],
)
def test_claims_of_the_wrong_form_are_refused(tmp_path, body, words):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(body))
    with pytest.raises(CrbgError) as caught:
        claims.read_claims(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_claims_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(CrbgError, match=r"cannot read .*absent\.yaml"):
        claims.read_claims(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("claims: [")
    with pytest.raises(CrbgError, match=r"cannot read .*bad\.yaml"):
        claims.read_claims(tmp_path / "bad.yaml")


def test_the_projects_claims_name_what_its_configuration_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    declared, config = claims.read_claims(), configs.read(["config.yaml"])
    ids = [c["id"] for c in declared["claims"]]
    assert len(set(ids)) == len(ids) > 0
    assert all(0 < len(declared[name]) <= 8 for name in claims.CONTRASTS)
    wanted = []
    for c in declared["claims"]:
        if (rule := c["rule"]) and rule["type"] != "untestable":
            at = {c.spec.density for c in config.experiment(rule["experiment"]).cells if c.arm == rule["arm"]}
            density = rule.get("density", next(iter(at), "no such arm"))
            densities = density if isinstance(density, list) else [density]
            others = rule.get("others", [])
            arms = [rule["arm"], *([] if "among" in rule else others), *([rule["reference"]] if rule["type"] == "cheaper" else [])]
            wanted += [(rule["experiment"], arm, d) for arm in arms for d in densities]
            wanted += [(rule["among"], arm, None) for arm in others if "among" in rule]
            wanted += [(rule["wider"], rule["arm"], d) for d in densities if "wider" in rule]
            if "other" in rule and "reference_density" in rule:
                wanted += [(rule["experiment"], rule["other"], rule[k]) for k in ("density", "reference_density")]
            if rule["type"] == "loss":
                wanted.append((rule.get("reference_experiment", rule["experiment"]), rule["reference"], rule.get("reference_density")))
    for c in (c for name in claims.CONTRASTS for c in declared[name]):
        wanted += [(c["experiment"], c["a"], c["density"]), (c.get("against", c["experiment"]), c["b"], c["density"])]
    wanted += [(g["experiment"], g["arm"], g["density"]) for g in declared["goals"]]
    ablations = ("order", "controls", "flat")  # judged on validation
    rules = [c["rule"] for c in declared["claims"] if c["rule"] and c["rule"]["type"] not in (*ablations, "untestable")]
    judged_on_test = {r["experiment"] for r in rules if r.get("part") != "validation"}
    assert {config.experiment(name).role for name in judged_on_test} == {"main"}
    there = {(e.name, c.arm, c.spec.density) for e in config.experiments.values() for c in e.cells}
    assert set(wanted) <= there
    every = [json.dumps(c, sort_keys=True) for name in claims.CONTRASTS for c in declared[name]]
    assert len(set(every)) == len(every)


# --- the whole report ---

MARKS = ("<!-- numbers: written by `crbg report`, do not edit -->\n", "<!-- end of numbers -->")


def whole(project):
    for arm, level in (("ours", 95.0), ("quiet", 94.0), ("theirs", 90.0)):
        for density in (0.5, 0.1):
            project.put(arm, density, around(level), sanity={"reinit": around(12.0)})
    project.put("dense", None, around(98.0))
    project.put("ours", 0.5, around(96.0), experiment="other", tested=False)
    project.put("ours", 0.5, [80.0, 82.0], experiment="tuning", tested=False)
    rule = {"type": "value", "experiment": "main", "arm": "ours", "density": 0.5, "published": 95.0, "at": 0.45, "margin": 1.0}
    body = {"claims": [GOOD | {"rule": rule, "quote": "<b>95 %</b>"}], "contrasts": [CONTRAST]}
    Path("paper/claims.yaml").write_text(yaml.safe_dump(body))
    Path("README.md").write_text(f"before\n{MARKS[0]}old{MARKS[1]}\nafter\n")


def written(*folders):
    files = [p for f in folders for p in Path(f).rglob("*") if p.is_file() and "runs" not in p.parts]
    return {str(p): p.read_bytes() for p in files}


def test_lines_of_many_arms_differ_in_colour_or_marker():
    looks = [(figures.COLOURS[i % 7], figures._marker(i)) for i in range(49)]
    assert len(set(looks)) == 49


def test_an_arm_without_the_field_of_the_axis_is_a_level(sweep, monkeypatch, tmp_path):
    given = {"sweep": {"view": "lines", "x": "options.mu0", "arms": {"popup": {"method": "edge_popup", "set": {"density": 0.5}}}}}
    Path("lines.yaml").write_text(yaml.safe_dump({"experiments": given}))
    sweep.config = configs.read(["config.yaml", "sweep.yaml", "lines.yaml"])
    for mu0 in (0.25, 1.0):
        sweep.fill("sweep", knob(1.0, mu0), around(90))
    sweep.fill("sweep", lambda c: c.arm == "popup", around(88))
    seen, real = [], figures.plt.close
    monkeypatch.setattr(figures.plt, "close", lambda f: seen.append(f) or None)
    figures.draw(tidy(sweep.config), sweep.config.experiment("sweep"), tmp_path / "f", False, {})
    top = seen[0].axes[0]
    assert [float(y) for line in top.lines if line.get_linestyle() == "--" for y in line.get_ydata()] == pytest.approx(
        [88.0, 88.0], abs=0.1
    )
    assert top.get_xlim()[1] < 2, "the level does not stretch the axis"
    real("all")


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
    assert page.count("<svg") == 3  # the key figure, main and other
    assert {"main", "other"} == set(re.findall(r'<article id="(.*?)">', page))
    assert "&lt;b&gt;95 %&lt;/b&gt;" in page  # a quote is text, not markup
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
    assert any("tuning: 6 runs are missing; `crbg run tuning` does them" in line for line in lines)

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
    assert sorted(written("paper")) == ["paper/claims.yaml", *(f"paper/figures/main.{s}" for s in ("pdf", "png", "svg")),
                                        *(f"paper/tables/main.{s}" for s in ("md", "tex"))]  # fmt: skip


def test_a_report_of_nothing_is_a_report(project):
    lines = build(project.config)
    assert Path("paper/report.html").exists()
    assert any("main: 28 runs are missing" in line for line in lines)
    assert brief(project.config, project.config.experiments.values()).startswith("Runs: none.")


# --- records that are committed ---


def strip(found):
    return {k: v for k, v in found.items() if k != "origin"}


def forget(project, cell):
    where = record_store.run_folder(project.config, cell.spec, cell.seed)
    for file in where.iterdir():
        file.unlink()


def test_recorded_runs_stand_in_for_runs(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    fresh = [record_store.find(project.config, c.spec, c.seed) for c in cells]
    assert {f["origin"] for f in fresh} == {"this run"}
    assert record_store.record(project.config, cells) == 4
    assert [p.name for p in Path("results/recorded").glob("*.json*")] == ["digits__lenet-16__crbg.jsonl"]
    for cell in cells:
        forget(project, cell)
    again = [record_store.find(project.config, c.spec, c.seed) for c in cells]
    assert {f["origin"] for f in again} == {"recorded"}
    assert list(map(strip, again)) == list(map(strip, fresh))
    assert record_store.find(project.config, cells[0].spec, 77) is None
    never = configs.read(["config.yaml"], ["reuse=never"])
    assert record_store.find(never, cells[0].spec, 0) is None


def test_a_fresh_run_goes_before_a_recorded_one(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    project.put("ours", 0.5, around(70.0), tested=False)
    found = record_store.find(project.config, cells[1].spec, 1)
    assert found["origin"] == "this run"
    assert found["record"]["validation"]["readings"]["binary"]["accuracy"] == 69.0
    # Asked for an evaluation, the recorded run is the one that has it.
    evaluated = record_store.find(project.config, cells[1].spec, 1, evaluated=True)
    assert evaluated["origin"] == "recorded"
    assert evaluated["evaluation"]["test"]["readings"]["binary"]["accuracy"] == 90.0


def test_recording_keeps_seeds_without_a_fresh_run(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    for cell in cells[1:]:
        forget(project, cell)
    project.put("ours", 0.5, [70.0])
    assert record_store.record(project.config, cells) == 1
    kept = list(map(json.loads, record_store.recorded_file(project.config, cells[0].spec).read_text().splitlines()))
    assert [r["seed"] for r in kept] == [0, 1, 2, 3]
    assert [r["evaluation"]["test"]["readings"]["binary"]["accuracy"] for r in kept][:2] == [70.0, 90.0]
    assert {r["digest"] for r in kept} == {cells[0].spec.digest()}
    assert kept[0]["spec"]["options"]["noise"] == 0.5


def test_a_demonstration_is_never_recorded_nor_filled_from_records(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    project.demonstrate()
    demo = project.cells("ours", 0.5)
    path = record_store.recorded_file(project.config, cells[0].spec)
    path.write_text(path.read_text().replace(cells[0].spec.digest(), demo[0].spec.digest()))
    assert record_store.recorded_file(project.config, demo[0].spec) == path
    assert record_store.find(project.config, demo[0].spec, 0) is None
    with pytest.raises(CrbgError, match="never recorded as evidence"):
        record_store.record(project.config, demo)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b["record"].update(digest="0" * 16), "records another spec than its digest says"),
        (lambda b: b.pop("record"), "is not a recorded run: it has no record"),
        (lambda b: b.update(provenance=5), "is not a recorded run: it has no record or no provenance"),
    ],
)
def test_a_recorded_line_that_is_not_what_it_says_is_refused(project, spoil, words):
    project.put("ours", 0.5, around(90.0))
    cell = project.cells("ours", 0.5)[0]
    record_store.record(project.config, [cell])
    forget(project, cell)
    path = record_store.recorded_file(project.config, cell.spec)
    body = json.loads(path.read_text())
    spoil(body)
    path.write_text(json.dumps(body, separators=(",", ":")))
    with pytest.raises(CrbgError) as caught:
        record_store.find(project.config, cell.spec, 0)
    assert str(caught.value).startswith(f"{path}, line 1 ")
    assert words in str(caught.value)
    assert "restore the line from version control" in str(caught.value)


def test_times_are_estimated_from_runs_of_the_same_kind(project):
    cells = project.cells("ours", 0.5)
    blind = estimates.estimate_seconds(project.config, cells)
    assert all(v > 3 for v in blind.values())
    project.put("ours", 0.5, [90.0, 90.0])  # 2 and 3 seconds
    assert set(estimates.estimate_seconds(project.config, cells).values()) == {2.5 + 3}


# --- JSON from strangers ---

VALID = json.dumps(
    {"digest": "abc", "status": "ok", "list": [1, 2.5, None, True, {"a": "é\u2028"}], "deep": {"x": {"y": [[]]}}}, indent=1
).encode()


def only_a_dict_or_an_error(folder, data):
    path = folder / "record.json"
    path.write_bytes(data)
    try:
        value = read_json(path)
    except CrbgError as error:
        value = {"message": str(error)} if str(path) in str(error) else None
    assert isinstance(value, dict)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


@calm
@given(st.binary(max_size=200))
@example(b"")
@example(b"{")
@example(b"[" * 200_000)
@example(b'{"a":' * 100_000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe{}")
@example(b'{"a": "\\ud800"}')
def test_any_bytes_are_a_dict_or_one_error(folder, data):
    only_a_dict_or_an_error(folder, data)


@calm
@given(st.integers(0, len(VALID)), st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_record_is_a_dict_or_one_error(folder, length, changes):
    body = bytearray(VALID)
    for where, value in changes:
        body[where] = value
    only_a_dict_or_an_error(folder, bytes(body[:length]))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"', '{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}', "{'a': 1}", "{} {}"])
def test_what_is_no_record_is_refused(folder, text):
    (folder / "x.json").write_text(text)
    with pytest.raises(CrbgError, match=r"x\.json is not a record"):
        read_json(folder / "x.json")


def test_a_record_of_absurd_size_is_not_read(folder, monkeypatch):
    (folder / "big.json").write_text('{"a": 1}')
    monkeypatch.setattr("crbg.storage.atomic.LARGEST_JSON", 7)
    with pytest.raises(CrbgError, match=r"big\.json is larger than any record: 8 bytes"):
        read_json(folder / "big.json")
    with pytest.raises(CrbgError, match=r"cannot read the record .*absent\.json"):
        read_json(folder / "absent.json")


def test_holm_leaves_contrasts_without_a_test_out_and_counts_those_declared():
    adjusted = stats.holm([math.nan, 0.001, 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.003, 0.02])
    assert stats.holm([0.001], declared=8) == pytest.approx([0.008])
