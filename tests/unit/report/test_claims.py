import re
from pathlib import Path

import pytest
import yaml
from made_up import CONTRAST, GOOD, around, kind, knob, reach
from paths import ROOT

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.report import claims, rules, stats, tables, verdicts
from crbg.report.published import read_published
from crbg.report.records_table import tidy
from crbg.storage.atomic import read_json, write_json

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
    assert out.evidence.endswith("Interpretation: r")


def test_value_rule_does_not_judge_a_missed_density(project):
    project.put("ours", 0.5, around(96.0), missed=True)
    out = project.verdict(type="value", density=0.5, published=96.0, margin=1.0)
    assert out.verdict == "not run"
    assert "4 of 4 runs did not reach the target density" in out.evidence


@pytest.mark.parametrize(
    ("natural", "verdict"), [(0.45, "reproduced"), (0.509, "reproduced"), (0.52, "not run"), (None, "not run")]
)
def test_value_rule_takes_a_natural_mask_that_is_sparser_than_asked(project, natural, verdict):
    project.put("ours", 0.5, around(80.0), half=around(96.0), missed=True)
    for cell in project.cells("ours", 0.5):
        path = record_store.run_folder(project.config, cell.spec, cell.seed) / "record.json"
        write_json(
            path, read_json(path) | {"anatomy": {"epochs": [{"density": 0.9}, {"density": natural}] if natural else []}}
        )
    rule = {"type": "value", "density": 0.5, "published": 96.0, "margin": 1.0}
    assert project.verdict(**rule).verdict == "not run"
    assert project.verdict(**rule, mask="half").verdict == verdict


@pytest.mark.parametrize(("at", "verdict"), [(1.0, "reproduced"), (0.99, "not reproduced")])
def test_value_rule_of_a_method_without_a_density_looks_at_what_it_kept(project, at, verdict):
    project.put("dense", None, around(96.0))
    assert (
        project.verdict(type="value", arm="dense", density=None, published=96.0, at=at, margin=1.0).verdict == verdict
    )


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
        assert "+2.00 [+2.00, +2.00] against quiet" in out.evidence  # all paired differences are equal
        assert f"ours at 0.5: {96.15 - theirs - 0.15:+.2f} [" in out.evidence
        (where / "evaluation.json").unlink()
        write_json(where / "record.json", read_json(where / "record.json") | {"status": "collapse", "reason": "closed"})
        out = project.verdict(**rule)
        assert (out.verdict, "1 run of ours collapsed" in out.evidence) == ("inconclusive", True)


def test_the_readme_says_with_its_numbers_what_comes_from_jpeg(project):
    project.put("ours", 0.5, around(90.0))
    rows = tidy(project.config)
    assert "JPEG" not in tables.readme_table(project.config.experiment("main"), rows)
    rows["lossy"], rows["lossy_test"] = 104, 23
    text = tables.readme_table(project.config.experiment("main"), rows)
    assert text.endswith("104 images of the data set (23 of them test images) were decoded from JPEG copies.\n")


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
    # The accuracies differ between seeds, so an unpaired interval of the difference would be much wider.
    hard = [80.0, 85.0, 90.0, 95.0]
    project.put("ours", 0.5, around(50.0), half=hard, mean=[h + g for h, g in zip(hard, around(gap), strict=True)])
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"mean - half = {gap:+.2f} points [{gap - reach(0.1):+.2f}, {gap + reach(0.1):+.2f}]" in out.evidence


@pytest.mark.parametrize(
    ("loss", "verdict"), [(-1.0, "reproduced"), (0.5, "reproduced"), (1.05, "inconclusive"), (3.0, "not reproduced")]
)
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
    [
        (10.0, 20.0, "reproduced"),
        (24.95, 10.0, "inconclusive"),
        (10.0, 26.0, "not reproduced"),
        (24.95, 26.0, "not reproduced"),
    ],
)
def test_sanity_rule(project, reinit, invert, verdict):
    rule = {"type": "sanity", "density": 0.5, "at_most": {"reinit": 25.0, "invert": 25.0}}
    assert project.verdict(**rule).verdict == "not run"
    project.put(
        "ours", 0.5, around(96.0), sanity={"reinit": around(reinit), "invert": around(invert), "shuffle": around(90.0)}
    )
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"reinit {reinit:.1f} %" in out.evidence
    assert "shuffle" not in out.evidence


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (90.0, 80.0, "reproduced"),
        (88.0, 80.0, "not reproduced"),  # ours is worse than theirs at the reference density 0.5
        (90.0, 90.0, "not reproduced"),  # theirs is as good at density 0.1
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


@pytest.mark.parametrize(
    ("level", "verdict"), [(90.0, "reproduced"), (88.95, "inconclusive"), (88.0, "not reproduced")]
)
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
        declared = claims.parse_claims({"claims": [], "goals": [goal]})
        return claims.judge(declared, tidy(project.config), project.config)[0]

    assert judged().verdict == "not run"
    project.put("ours", 0.5, around(level))
    assert (judged().verdict, judged().id) == (word, "goal 89.0 % at 50 %")
    project.put("ours", 0.5, around(level), missed=True)
    assert judged().verdict == "missed"


@pytest.mark.parametrize(
    ("weak", "strong", "verdict"),  # densities at penalty weights 1 and 10 with mu0 = 1
    [
        (0.5, 0.45, "reproduced"),
        (0.5, 0.5, "not reproduced"),
        (0.5, 0.55, "not reproduced"),
        (0.5, [0.4, 0.4, 0.4, 0.51], "inconclusive"),
    ],
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


@pytest.mark.parametrize(
    ("worst", "verdict"), [(89.5, "reproduced"), (89.05, "inconclusive"), (80.0, "not reproduced")]
)
def test_flat_rule(sweep, worst, verdict):
    rule = {"type": "flat", "experiment": "sweep", "arm": "knobs", "most": 1.0}
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("sweep", knob(1.0, 0.25), around(90))
    sweep.fill("sweep", knob(1.0, 1.0), around(89.9))
    sweep.fill("sweep", knob(10.0, 0.25), around(worst))
    assert sweep.judge(rule)[0].verdict == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "reproduced"), (0.0, "inconclusive"), (-1.0, "not reproduced")])
def test_order_rule_takes_the_best_of_each(sweep, gain, verdict):
    rule = {
        "type": "order",
        "experiment": "sweep",
        "arm": "kinds",
        "field": "penalty",
        "a": "induce_decision",
        "b": "induce_sparse",
    }
    assert sweep.judge(rule)[0].verdict == "not run"

    base = [80.0, 85.0, 90.0, 95.0]  # without pairing by seed, the spread would hide the difference
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
    [
        (97.0, 92.0, "exceeded"),
        (95.0, 92.0, "reproduced"),
        (95.0, 88.0, "not reproduced"),
        (95.0, 89.2, "inconclusive"),
    ],
)
def test_width_rule_judges_every_point(sweep, wide, narrow, verdict):
    Path("paper/published.yaml").write_text(
        yaml.safe_dump({"width": [{"weights": 100, "accuracy": 95}, {"weights": 11, "accuracy": 90}]})
    )
    rule = {"type": "width", "experiment": "widths", "arm": "ours", "margin": 0.8}
    assert sweep.judge(rule)[0].verdict == "not run"
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(wide), gated=1000)
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-10", around(narrow), gated=110)
    out = sweep.judge(rule)[0]
    assert out.verdict == verdict
    assert f"11.0 %: {narrow - 90:+.1f}" in out.evidence
    assert "real-valued" not in out.evidence
    for model, gated in (("lenet-100", 1000), ("lenet-10", 110)):
        sweep.fill(
            "widths", lambda c, m=model: c.arm == "ours" and c.spec.model == m, around(50.0), gated=gated, soft=90.0
        )
    assert "0 of 2 points reached (1 by the real-valued gates)" in sweep.judge(rule)[0].evidence, (
        "90 is enough for the second alone"
    )


def test_the_width_rule_names_the_file_that_lacks_its_points(sweep):
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(96), gated=1000)
    with pytest.raises(CrbgError, match=r"paper/published\.yaml has no points under `width`"):
        sweep.judge({"type": "width", "experiment": "widths", "arm": "ours", "margin": 0.8})


@pytest.mark.parametrize(
    ("narrow", "verdict"), [(86.5, "reproduced"), (86.0, "inconclusive"), (82.0, "not reproduced")]
)
def test_steady_rule_judges_how_much_the_gap_grows(sweep, narrow, verdict):
    """The gap itself, 3 points at full width, does not matter."""
    rule = {"type": "steady", "experiment": "widths", "arm": "ours", "reference": "dense", "most": 1.0}
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(93.5), gated=1000)
    sweep.fill("widths", lambda c: c.arm == "dense" and c.spec.model == "lenet-100", around(96.5), gated=1000)
    assert sweep.judge(rule)[0].verdict == "not run", "one width has no change"
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-10", around(narrow), gated=110)
    sweep.fill("widths", lambda c: c.arm == "dense" and c.spec.model == "lenet-10", around(90), gated=110)
    out = sweep.judge(rule)[0]
    assert out.verdict == verdict
    assert f"is 3.0 points at full width; it changes by 11.0 %: {87 - narrow:+.1f} [" in out.evidence
    # A network below `down_to` does not decide; without another one, nothing is judged.
    assert sweep.judge(rule | {"down_to": 10.0})[0].verdict == verdict
    assert sweep.judge(rule | {"down_to": 20.0})[0].verdict == "not run"


def test_loss_rule_may_take_its_reference_from_another_experiment(sweep):
    rule = {"type": "loss", "experiment": "main", "arm": "ours", "density": 0.5, "reference": "dense", "most": 1.0}
    sweep.put("ours", 0.5, around(90))
    sweep.put("dense", None, around(90.2))
    assert sweep.judge(rule)[0].verdict == "reproduced"
    assert sweep.judge(rule | {"reference_experiment": "widths"})[0].verdict == "not run"


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
    # If one side lacks a seed, the comparison is unpaired.
    project.put("theirs", 0.5, base[:3])
    assert ", Welch, n = 3" in project.judge(contrasts=[CONTRAST | {"b": "theirs"}])[0].evidence


def test_contrasts_are_corrected_together(project):
    project.put("ours", 0.5, [b + 1 for b in around(90.0, 0.5)])
    project.put("quiet", 0.5, around(90.0, 0.5), draw="x")
    project.put("ours", 0.1, around(90.0, 0.5))
    project.put("quiet", 0.1, around(90.0, 0.5), draw="x")
    p = stats.welch(around(91.0, 0.5), around(90.0, 0.5)).p
    alone, together = (
        project.judge(contrasts=[CONTRAST, *more])[0].evidence for more in ([], [CONTRAST | {"density": 0.1}])
    )
    assert alone.endswith(f"Holm p = {p:.2g}")
    assert together.endswith(f"Holm p = {2 * p:.2g}")
    missing = project.judge(contrasts=[CONTRAST | {"b": "theirs"}])[0]
    assert (missing.verdict, missing.evidence) == ("not run", "no runs")


def test_explored_contrasts_are_labelled_and_corrected_apart(project):
    project.put("ours", 0.5, [b + 1 for b in around(90.0, 0.5)])
    project.put("quiet", 0.5, around(90.0, 0.5), draw="x")
    alone = project.judge(contrasts=[CONTRAST])[0]
    explored = [CONTRAST | {"label": "first round", "declared": "after"}, CONTRAST | {"density": 0.1}]
    declared = claims.parse_claims({"claims": [], "contrasts": [CONTRAST], "explored": explored})
    found = claims.judge(declared, tidy(project.config), project.config)
    first, later, _ = found
    assert (first.source, first.declared) == ("confirmatory contrast", "after")  # the same runs as an explored one
    assert first.evidence.startswith(alone.evidence)
    assert alone.evidence != later.evidence
    assert later.id.endswith("density 0.5 (first round)")
    assert (later.source, later.declared) == ("explored contrast, which confirms nothing", "after")
    claim = project.judge(None)[0]
    assert "density" not in verdicts.verdict_table([claim, *found], project.config)
    table = verdicts.contrast_table([claim, *found])
    assert table.count("\n| ours - quiet at density") == 3
    assert "Interpretation" not in table


FLOOR = {"type": "floor", "experiment": "main", "arm": "ours", "density": 0.5, "least": 95.0}
SECOND = FLOOR | {"arm": "quiet"}


def read_twice(project, **more):
    claim = GOOD | {"rule": FLOOR, "second": SECOND, "declared": "after", "first": "missed"} | more
    return claims.judge(claims.parse_claims({"claims": [claim]}), tidy(project.config), project.config)[0]


def test_a_first_reading_cannot_refute_while_a_second_one_is_declared(project):
    assert read_twice(project).verdict == "not run"
    for level, verdict in ((90.0, "inconclusive: second reading"), (95.1, "inconclusive"), (99.0, "reproduced")):
        project.put("ours", 0.5, around(level))
        out = read_twice(project)
        assert out.verdict == verdict
        assert "a second reading (main) is declared and not run" in out.measured
        assert out.declared == "after"
    project.put("ours", 0.5, around(90.0))
    assert "first reading: not reproduced, 90.00 %" in read_twice(project).measured
    assert read_twice(project, second=None).verdict == "not reproduced"


def test_a_second_reading_decides_and_keeps_the_first_one_beside_it(project):
    project.put("ours", 0.5, around(90.0))
    project.put("quiet", 0.5, around(99.0))
    out = read_twice(project)
    assert (out.verdict, out.declared) == ("reproduced", "before")
    assert out.measured.startswith("second reading: 99.00 %")
    assert "First reading: not reproduced, 90.00 %" in out.measured
    assert out.measured.endswith("Outcome of the earlier rule: missed")
    project.put("quiet", 0.5, around(90.0))
    assert read_twice(project).verdict == "not reproduced"


def test_a_second_reading_decides_only_with_all_its_seeds(project):
    project.put("ours", 0.5, around(90.0))
    project.put("quiet", 0.5, around(99.0)[:2])
    out = read_twice(project)
    assert out.verdict == "inconclusive: second reading"
    assert f"a second reading (main) is declared and has 2 of {len(around(99.0))} seeds" in out.measured


def test_a_rule_about_an_unknown_arm_is_an_error(project):
    with pytest.raises(CrbgError, match=r"claim c0: main has no arm 'our': did you mean 'ours'"):
        project.judge(FLOOR | {"arm": "our"})


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "loss", "density": 0.5, "reference": "quiet", "reference_density": 0.5, "most": 0.5},
        {"type": "best", "density": 0.5, "others": ["quiet"]},
        {"type": "lead", "density": 0.5, "other": "quiet", "by": 1.0, "margin": 0.5},
    ],
)
@pytest.mark.parametrize("side", ["ours", "quiet", ""])
def test_a_comparison_with_runs_that_missed_their_density_decides_nothing(project, rule, side):
    project.put("ours", 0.5, around(99.0), missed=side == "ours")
    project.put("quiet", 0.5, around(95.0), missed=side == "quiet")
    out = project.verdict(**rule)
    if side:
        assert out.verdict == "inconclusive"
        assert f"4 of 4 runs of {side} did not reach the target density; they decide nothing" in out.measured
    else:
        assert out.verdict in ("reproduced", "exceeded")


@pytest.mark.parametrize(
    ("level", "verdict"),
    [(99.0, "reproduced"), (95.1, "inconclusive: shorter search"), (90.0, "inconclusive: shorter search")],
)
def test_a_search_shorter_than_a_fifth_of_the_published_one_can_only_confirm(project, level, verdict):
    project.put("ours", 0.5, around(level))
    steps = tidy(project.config).steps.max()
    short, enough = ({"steps": int(steps * k), "stated": "k epochs"} for k in (5.5, 4.5))
    out = read_twice(project, second=None, budget=short)
    assert out.verdict == verdict
    assert claims.kind_of(out.verdict) == verdict.split(":")[0]
    assert f"search of {steps:.0f} steps, 18 % of the published {short['steps']} (k epochs)" in out.measured
    plain = read_twice(project, second=None).verdict
    assert read_twice(project, second=None, budget=enough).verdict == plain


@pytest.mark.parametrize(
    ("gain", "verdict"), [(13.0, "exceeded"), (11.0, "reproduced"), (9.95, "inconclusive"), (5.0, "not reproduced")]
)
def test_lead_rule(project, gain, verdict):
    rule = {"type": "lead", "density": 0.5, "other": "theirs", "by": 11.0, "margin": 1.0}
    assert project.verdict(**rule).verdict == "not run"
    project.put("theirs", 0.5, [80.0, 81.0, 82.0, 83.0])
    project.put("ours", 0.5, [b + g for b, g in zip([80.0, 81.0, 82.0, 83.0], around(gain), strict=True)])
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert "+11 claimed, margin 1.0, n = 4" in out.evidence


@pytest.mark.parametrize(("sparse", "verdict"), [(3.0, "reproduced"), (1.0, "inconclusive"), (-1.0, "not reproduced")])
def test_pronounced_rule_compares_the_leads_at_two_densities(project, sparse, verdict):
    rule = {"type": "pronounced", "density": 0.1, "moderate": 0.5, "reference": "theirs"}
    base = [80.0, 85.0, 90.0, 95.0]
    for density, lead in ((0.5, around(1.0)), (0.1, around(sparse))):
        project.put("theirs", density, base)
        assert project.verdict(**rule).verdict == "not run" or density == 0.1
        project.put("ours", density, [b + d for b, d in zip(base, lead[::-1] if density == 0.1 else lead, strict=True)])
    out = project.verdict(**rule)
    assert out.verdict == verdict
    assert f"ours - theirs is {sparse:+.2f} at 0.1 and +1.00 at 0.5; difference {sparse - 1:+.2f} [" in out.evidence


def test_a_confirmatory_contrast_of_runs_that_were_read_before_is_marked(project):
    project.put("ours", 0.5, around(99.0))
    project.put("quiet", 0.5, around(95.0))
    contrast = {"experiment": "main", "a": "ours", "b": "quiet", "density": 0.5}
    for explored, declared in (([], "before"), ([contrast | {"declared": "after"}], "after")):
        made = claims.parse_claims({"contrasts": [contrast], "explored": explored})
        first = claims.judge(made, tidy(project.config), project.config)[0]
        assert first.declared == declared
        assert first.measured.endswith("no new evidence") == bool(explored)


def test_a_demonstration_judges_nothing(project):
    project.demonstrate()
    project.put("ours", 0.5, around(96.0))
    project.put("quiet", 0.5, around(96.0))
    out = project.judge(
        {"type": "value", "experiment": "main", "arm": "ours", "density": 0.5, "published": 96.0, "margin": 1.0}, None
    )
    assert [v.verdict for v in out] == ["not run", "not run"]
    assert all("nothing is judged in a demonstration" in v.evidence for v in out)
    assert len(project.judge(contrasts=[CONTRAST])) == 0
    assert verdicts.verdict_table(out, project.config).startswith("**A demonstration: nothing is judged.**")


RULE = {"type": "floor", "experiment": "main", "arm": "ours", "density": 0.5, "least": 89.0}


NO_QUOTE = {k: v for k, v in GOOD.items() if k != "quote"}
VALUE = {k: v for k, v in RULE.items() if k != "least"} | {"type": "value", "published": 96.0, "margin": 1.0}


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (GOOD | {"verdict": "true"}, "claim 'a': unknown field 'verdict': did you mean "),
        (GOOD | {"quotes": "q"}, "claim 'a': unknown field 'quotes': did you mean 'quote'?"),
        (NO_QUOTE, "claim 'a': field 'quote' is missing"),
        (GOOD | {"kind": "values"}, "field 'kind': Input should be 'value', 'order', "),
        ("a", "claims, entry 1: expected a mapping of fields, found 'a'"),
        (None, "claims, entry 1: expected a mapping of fields, found None"),
        (GOOD | {"rule": "floor"}, "claim 'a': rule: expected a mapping of fields, found 'floor'"),
        (GOOD | {"reduced": ["floor"]}, "claim 'a': reduced: expected a mapping of fields, found ['floor']"),
        (GOOD | {"rule": {"type": "values"}}, "claim 'a': rule: unknown rule 'values': did you mean 'value'?"),
        (GOOD | {"rule": RULE | {"lest": 1}}, "rule 'floor': unknown field 'lest': did you mean 'least'?"),
        (GOOD | {"rule": RULE | {"least": "much"}}, "rule 'floor': field 'least': Input should be a valid number"),
        (GOOD | {"rule": {"type": "floor"}}, "field 'arm' is missing; field 'density' is missing"),
        (GOOD | {"rule": VALUE | {"mask": "soft"}}, "rule 'value': field 'mask': Input should be 'binary', "),
    ],
)
def test_claims_of_the_wrong_form_are_refused(claim, words):
    with pytest.raises(CrbgError, match=f"^over there: .*{re.escape(words)}"):
        claims.parse_claims({"claims": [claim]}, "over there")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"goals": [{"experiment": "e", "arm": "a", "density": 0.1}]}, "goals, entry 1: field 'least' is missing"),
        ({"contrasts": [CONTRAST, CONTRAST | {"B": "b"}]}, "contrasts, entry 2: unknown field 'B'"),
        ({"contrasts": [CONTRAST] * 9}, "9 contrasts are declared; the protocol allows at most 8"),
        ({"explored": [CONTRAST | {"B": "b"}]}, "explored, entry 1: unknown field 'B'"),
        (["a"], "expected a mapping of fields, found ['a']"),
        ({"goals": {"a": 1}}, "goals must be a list of entries, not {'a': 1}"),
        ({"contrasts": ["a"]}, "contrasts, entry 1: expected a mapping of fields, found 'a'"),
        ({"claims": [], "clams": []}, "unknown field 'clams': did you mean 'claims'?"),
        ({"claims": [GOOD, GOOD]}, "claim 'a' is declared twice"),
    ],
)
def test_lists_of_the_wrong_form_are_refused(tmp_path, body, words):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(body))
    with pytest.raises(CrbgError) as caught:
        claims.read_claims(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_value_without_a_density_needs_the_published_one():
    rule = {"type": "value", "experiment": "e", "arm": "a", "density": None, "published": 98.0, "margin": 1.0}
    with pytest.raises(CrbgError, match="needs the published density as `at`"):
        rules.read_rule(rule, "here")


def test_everything_wrong_with_the_claims_is_said_at_once(tmp_path):
    path = tmp_path / "claims.yaml"
    bad = [GOOD | {"rule": {"type": "values"}, "kid": "value"}, GOOD | {"id": "b", "declared": "later"}]
    path.write_text(yaml.safe_dump({"claims": bad, "contrasts": [{"a": "x"}]}))
    with pytest.raises(CrbgError) as caught:
        claims.read_claims(path)
    places = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert places == ["claim 'a'", "claim 'a'", "claim 'b'", "contrasts, entry 1"]


def test_every_rule_is_documented_and_frozen():
    assert len(rules.RULES) == 20
    for name, rule in rules.RULES.items():
        assert rule.type == name
        assert rule.__doc__ != rules.Rule.__doc__
        assert rule.model_config["frozen"]


def test_claims_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(CrbgError, match=r"cannot read .*absent\.yaml"):
        claims.read_claims(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("claims: [")
    with pytest.raises(CrbgError, match=r"cannot read .*bad\.yaml"):
        claims.read_claims(tmp_path / "bad.yaml")


def read_by(rule):
    """List (experiment, arm, density) of all runs that a rule uses."""
    here = [(rule.experiment, rule.arm, d) for d in rule.densities]
    match rule.type:
        case "best":
            whole = {o: [None] if rule.among or o in rule.whole else rule.densities for o in rule.others}
            here += [(rule.among or rule.experiment, o, d) for o, densities in whole.items() for d in densities]
        case "loss":
            here.append((rule.reference_experiment or rule.experiment, rule.reference, rule.reference_density))
        case "cheaper" | "pronounced":
            here += [(rule.experiment, rule.reference, d) for d in rule.densities]
        case "lead":
            here.append((rule.experiment, rule.other, rule.density))
        case "objective":
            here += [(rule.experiment, o, rule.density) for o in rule.others]
        case "frontier":
            here.append((rule.experiment, rule.other, rule.density))
            here.append((rule.experiment, rule.reference or rule.other, rule.reference_density))
    return here


def test_the_projects_claims_name_what_its_configuration_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    declared, config = claims.read_claims(), configs.read(["config.yaml"])
    assert len(declared.claims) > 90
    lists = [declared.contrast_list(name) for name in claims.CONTRASTS]
    assert len(declared.contrasts) == 8
    found = [r for c in declared.claims for r in (c.rule, c.second) if r and r.type != "untestable"]
    swept = ("order", "controls", "flat", "width", "steady", "silent")  # these rules use all settings of an arm
    wanted = [w for rule in found if rule.type not in swept for w in read_by(rule)]
    for rule in (r for r in found if r.type in swept):
        assert rule.arm in {c.arm for c in config.experiment(rule.experiment).cells}
    for c in (c for listed in lists for c in listed):
        wanted += [(c.experiment, c.a, c.density), (c.against or c.experiment, c.b, c.density)]
    wanted += [(g.experiment, g.arm, g.density) for g in declared.goals]
    wanted += [(c.experiment, c.arm, c.density) for c in declared.comparison if not c.constant]
    there = {(e.name, c.arm, c.spec.density) for e in config.experiments.values() for c in e.cells}
    assert set(wanted) <= there
    tested = [r for r in found if r.type not in ("order", "controls", "flat", "silent")]
    on_test = {r.experiment for r in tested if getattr(r, "part", "test") == "test"}
    assert {config.experiment(name).role for name in on_test} == {"main"}
    second = {c.second.experiment for c in declared.claims if c.second} | {c.experiment for c in declared.contrasts}
    assert all("verdicts" in config.experiment(name).targets for name in second)
    every = [c.model_dump_json() for listed in lists for c in listed]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width: [", r"published\.yaml is not valid YAML"),
        ("width: [{weights: 100, accuracy: high, zero: 1, one: 2}]", r"published\.yaml: field 'width\.0\.accuracy'"),
        ("widths: []", r"unknown field 'widths': did you mean 'width'"),
        ("winners: {cts: {ltr: {dense: 1.0}}}", r"published\.yaml: field 'winners\.cts\.ltr"),
        ("- 1", r"published\.yaml"),
    ],
)
def test_a_malformed_file_of_published_numbers_is_one_error(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("paper").mkdir()
    Path("paper/published.yaml").write_text(text)
    with pytest.raises(CrbgError, match=message):
        read_published()
