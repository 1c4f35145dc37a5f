"""Claims judged by runs on a reduced schedule, claims that no data can test, and the time a rule was declared."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from made_up import GOOD, ruled
from paths import ROOT

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.report import claims, numbers, page, published, stats, verdicts
from crbg.report.records_table import COLUMNS

REAL = SimpleNamespace(demonstration=False, experiments={})
SCHEDULE = {
    "experiment": "short",
    "arm": "ours",
    "epochs": 10,
    "published_epochs": 160,
    "decides": "three seeds of 160 epochs",
}
VALUE = {"type": "value", "density": 0.1, "published": 80.0, "margin": 1.0} | SCHEDULE

PLAIN = {
    "part": "test",
    "reading": "binary",
    "density_missed": False,
    "status": "ok",
    "epochs": 10,
    "setting": "",
    "device": "a CPU",
    "search_seconds": 5.0,
}


def plain(rule):
    """Return a rule without the fields of its schedule."""
    return {k: v for k, v in rule.items() if k not in ("epochs", "published_epochs", "decides")}


def runs(arm, accuracies, asked=0.1, experiment="short", **more):
    """Return rows of the tidy table with test accuracies, one row for each seed."""
    common = {"experiment": experiment, "arm": arm, "asked": asked, "density": asked or 1.0, "digest": f"{arm}{asked}"}
    rows = [PLAIN | common | more | {"seed": i, "draw": i, "order": i, "value": a} for i, a in enumerate(accuracies)]
    return pd.DataFrame(rows, columns=COLUMNS)


def judged(reduced, *frames, kind="value", rule=None, **more):
    claim = GOOD | {"id": "c", "kind": kind, "rule": rule, "reduced": reduced}
    rows = pd.concat([f for f in frames if len(f)] or [runs("nothing", [1.0])], ignore_index=True)
    return claims.judge(claims.parse_claims({"claims": [claim | more]}), rows, REAL)[0]


FULL = plain(VALUE) | {"experiment": "long"}


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ([85.0, 85.1, 84.9], "exceeded"),
        ([80.0, 80.1, 79.9], "reproduced"),
        ([60.0, 60.1, 59.9], "observed"),  # on the full schedule, this would be `not reproduced`
        ([75.0, 80.0, 85.0], "observed"),  # on the full schedule, this would be `inconclusive`
        ([85.0, 85.1], "observed"),  # two seeds are too few to confirm a claim
        ([85.0, 85.0], "observed"),
        ([85.0], "observed"),
        ([], "not run"),
    ],
)
def test_a_reduced_schedule_may_confirm_a_value_and_never_refutes_one(accuracies, verdict):
    out = judged(VALUE, runs("ours", accuracies))
    assert out.verdict == verdict
    assert "nan" not in out.evidence
    assert "inf" not in out.evidence
    if accuracies:
        mean = sum(accuracies) / len(accuracies)
        assert f"{mean:.2f} % at 90.0 % sparsity, d = {mean - 80:+.2f}" in out.evidence
        said = "reduced schedule of 10 epochs (published: 160); runs that would decide: three seeds of"
        assert f"n = {len(accuracies)}; {said}" in out.evidence
        assert ("[" in out.evidence) == (len(accuracies) > 1)
        assert out.measured.endswith("runs that would decide: three seeds of 160 epochs")


def test_runs_of_the_full_schedule_decide_where_they_are():
    short, low = runs("ours", [85.0, 85.1, 84.9]), [60.0, 60.1, 59.9]
    assert judged(VALUE, short, rule=FULL).verdict == "exceeded"
    out = judged(VALUE, short, runs("ours", low, experiment="long"), rule=FULL)
    assert (out.verdict, "reduced" in out.evidence) == ("not reproduced", False)
    # A single run on the full schedule is not enough to decide, but it still takes precedence over the reduced rule.
    assert judged(VALUE, short, runs("ours", [60.0], experiment="long"), rule=FULL).verdict == "inconclusive"
    # Full runs that missed their target density are not replaced by runs on the reduced schedule.
    out = judged(VALUE, short, runs("ours", low, experiment="long", density_missed=True), rule=FULL)
    assert (out.verdict, "3 of 3 runs did not reach the target density" in out.evidence) == ("not run", True)


def test_the_epochs_that_were_run_are_said_whatever_was_declared():
    out = judged(VALUE | {"published_epochs": "not stated"}, runs("ours", [85.0], epochs=8))
    assert "reduced schedule of 8 epochs, 10 declared (published: not stated)" in out.evidence


def test_runs_that_missed_their_density_or_collapsed_confirm_nothing():
    out = judged(VALUE, runs("ours", [85.0, 85.1, 84.9], density_missed=True))
    assert out.verdict == "observed"
    assert "85.00 % at" in out.evidence
    assert "3 runs of ours did not reach the target density" in out.evidence
    gone = runs("ours", [None], part=None, reading=None, status="collapse", density_missed=None).assign(seed=3)
    out = judged(VALUE, runs("ours", [85.0, 85.1, 84.9]), gone)
    assert (out.verdict, "1 run of ours ended without a ticket" in out.evidence) == ("observed", True)
    out = judged(VALUE, gone)  # the only run collapsed, so the claim is only observed
    assert (out.verdict, "1 run of ours ended without a ticket" in out.evidence) == ("observed", True)


LEVEL = {"type": "best", "density": 0.1, "others": ["theirs", "head"], "whole": ["head"]} | SCHEDULE
BELOW = {"type": "loss", "density": 0.1, "reference": "head", "most": 1.0} | SCHEDULE
HALF = {"reference": "half", "reference_density": 0.5}
AHEAD = {"type": "frontier", "density": 0.1, "other": "theirs", "margin": 1.0} | HALF | SCHEDULE
FLOOR = {"type": "floor", "density": 0.1, "least": 79.0} | SCHEDULE
DEEPER = {"type": "deeper", "density": 0.1} | SCHEDULE
GAP = {"type": "gap", "density": 0.1, "most": 2.0} | SCHEDULE


@pytest.mark.parametrize("rule", [LEVEL, BELOW, AHEAD, FLOOR, DEEPER, GAP], ids=lambda rule: rule["type"])
@pytest.mark.parametrize(("n", "verdict"), [(0, "not run"), (1, "observed"), (2, "observed"), (3, "reproduced")])
def test_every_rule_reads_one_two_and_three_seeds(rule, n, verdict):
    level = [80.0, 80.1, 80.2][:n]
    layers = {"depth": 0.9, "by_size": 0.5, "depth_alone": 0.8, "by_chance": 0.3, "tensors": 54}
    frames = [runs("ours", level, **layers), *(runs("ours", level, reading=r) for r in ("mean", "half"))]
    beside = (("theirs", 0.1, 5), ("head", None, 5), ("half", 0.5, 0))
    frames += [runs(arm, [a - down for a in level], asked) for arm, asked, down in beside]
    out = judged(rule, *frames, kind="order")
    assert out.verdict == verdict
    assert not any(word in out.evidence for word in ("nan", "inf", "[]"))
    assert (f"n = {n}; reduced schedule" in out.evidence) == (n > 0)
    worse = [f.assign(value=f.value - 9, depth_alone=-0.8) if set(f.arm) == {"ours"} else f for f in frames]
    out = judged(rule, *worse, kind="order")
    assert out.verdict == ("reproduced" if rule is GAP and n == 3 else "observed" if n else "not run")


def test_the_fewest_seeds_of_a_comparison_count():
    ours, head = runs("ours", [80.0, 80.1, 80.2]), runs("head", [70.0, 70.1, 70.2], None)
    assert judged(LEVEL, ours, head, runs("theirs", [70.0, 70.1, 70.2]), kind="order").verdict == "reproduced"
    out = judged(LEVEL, ours, head, runs("theirs", [70.0, 70.1]), kind="order")
    assert (out.verdict, "n = 2; reduced" in out.evidence) == ("observed", True)
    assert judged(LEVEL, ours, head, kind="order").verdict == "not run"  # only one side of the comparison has runs
    two = LEVEL | {"density": [0.1, 0.5], "others": ["theirs"]}
    levels = (("ours", [80.0, 80.1, 80.2]), ("theirs", [70.0, 70.1, 70.2]))
    frames = [runs(arm, level, density) for density in (0.1, 0.5) for arm, level in levels]
    assert judged(two, *frames, kind="order").verdict == "reproduced"
    few = [f.iloc[:2] for f in frames[2:]]  # two similar pairs have a narrow interval but are too few
    assert ruled(plain(two), pd.concat([*frames[:2], *few]))[0] == "reproduced"
    assert judged(two, *frames[:2], *few, kind="order").verdict == "observed"


def test_runs_that_cannot_be_compared_are_still_shown():
    frames = [runs("ours", [80.0]), runs("theirs", [75.0]), runs("half", [80.0], 0.5).assign(draw="another")]
    out = judged(AHEAD, *frames, kind="order")
    assert out.verdict == "observed"
    assert "not paired" in out.evidence
    assert "ours 80.00 %, n = 1" in out.evidence


@pytest.mark.parametrize(
    ("within", "verdict"),
    [
        (None, "not reproduced"),
        (1.0, "reproduced"),
        (0.5, "inconclusive"),
        (0.3, "not reproduced"),
    ],
)
def test_level_with_others_is_being_worse_by_less_than_a_margin(within, verdict):
    rule = {"type": "best", "experiment": "short", "arm": "ours", "density": 0.1, "others": ["theirs"]}
    rows = pd.concat([runs("ours", [79.5, 79.5, 79.5]), runs("theirs", [80.0, 80.02, 79.98])])
    rule |= {} if within is None else {"within": within}
    found, evidence = ruled(rule, rows)
    assert found == verdict
    assert ("at most" in evidence) == (within is not None)


def test_a_rule_may_say_that_its_schedule_confirms_nothing():
    frames = [runs("ours", [80.0, 80.1, 80.2]), runs("head", [70.0, 70.1, 70.2], None)]
    assert judged(BELOW, *frames, kind="value").verdict == "reproduced"
    assert judged(BELOW | {"confirms": False}, *frames, kind="value").verdict == "observed"


@pytest.mark.parametrize("n", [1, 3])
def test_a_cost_is_only_observed(n):
    rule = {"type": "cheaper", "density": 0.1, "reference": "slow", "times": 12.0} | SCHEDULE
    fast, slow = runs("ours", [80.0] * 3), runs("slow", [80.0] * n, search_seconds=60.0)
    out = judged(rule, fast, slow, kind="cost")
    assert out.verdict == "observed"
    assert "ours takes 5 s, slow 60 s: 12.0 times" in out.evidence
    full = pd.concat([fast, runs("slow", [80.0] * 3, search_seconds=60.0)])
    assert ruled(plain(rule), full)[0] == "reproduced"
    out = judged(rule, fast, slow.assign(device="another"), kind="cost")
    assert (out.verdict, "different machines" in out.evidence) == ("observed", True)


def test_sanity_checks_read_one_seed():
    rule = {"type": "passes", "density": 0.1} | SCHEDULE
    kinds = [("none", 80.0), ("shuffle", 70.0), ("reinit", 79.8)]
    frames = [runs("ours", [a], setting=f"control {c}", digest=c) for c, a in kinds]
    out = judged(rule, *frames, kind="order")
    assert out.verdict == "observed"
    assert out.evidence.startswith("ours at 0.1: reinit costs 0.20, shuffle costs 10.00; margin 0.5, n = 1; reduced")
    assert judged(rule, frames[0], kind="order").verdict == "not run"


@pytest.mark.parametrize(("relu", "verdict"), [(60.0, "reproduced"), (10.5, "inconclusive"), (1.0, "not reproduced")])
def test_silent_units_are_counted_on_validation_runs(relu, verdict):
    rule = {"type": "silent", "experiment": "short", "arm": "ours", "other": "relu"}
    frames = [runs("ours", [1.0] * 3, part="validation"), runs("relu", [1.0] * 3, part="validation")]
    assert ruled(rule, pd.concat(frames))[0] == "not run"
    frames = [f.assign(silent=[s - 1.0, s, s + d]) for f, s, d in zip(frames, (10.0, relu), (1.0, 2.0), strict=True)]
    found, evidence = ruled(rule, pd.concat(frames))
    assert found == verdict
    assert f"silent hidden units: 10.0 in ours and {relu + 1 / 3:.1f} in relu" in evidence


@pytest.mark.parametrize(("ours", "verdict"), [(2.0, "reproduced"), (1.05, "inconclusive"), (0.2, "not reproduced")])
def test_objectives_of_tickets_are_compared_before_training(ours, verdict):
    rule = {"type": "objective", "experiment": "short", "arm": "ours", "objective": "kl", "others": ["a", "b"]}
    rule |= {"density": 0.1}
    frames = [runs("ours", [1.0] * 3, objective_kl=ours), runs("a", [1.0] * 3, objective_kl=0.5), runs("b", [1.0] * 3)]
    assert ruled(rule, pd.concat(frames)) == ("not run", "no values of this objective for b")
    frames[2]["objective_kl"] = [0.9, 1.0, 1.1]
    found, evidence = ruled(rule, pd.concat(frames))
    assert found == verdict
    assert f"{ours - 0.5:+.3g} [" in evidence


def test_alike_values_have_an_interval_without_width():
    d = stats.welch([80.0, 80.0], [79.0, 79.0, 79.0]).difference
    assert (d.mean, d.low, d.high, d.n) == (1.0, 1.0, 1.0, 2)
    assert stats.welch([80.0, 80.0], [80.0, 80.0]).p == 1.0


UNTESTABLE = {"type": "untestable", "on": "MNIST", "why": "both methods saturate"}


def test_what_data_cannot_test_is_said_with_the_first_outcome(tmp_path):
    out = judged(None, runs("ours", [80.0]), rule=UNTESTABLE, first="not reproduced, by another rule", declared="after")
    assert out.verdict == "not testable on MNIST"
    assert out.measured == "both methods saturate. Outcome of the earlier rule: not reproduced, by another rule"
    table, latex = verdicts.verdict_table([out], REAL), verdicts.verdict_latex([out])
    *_, head, _, line = table.splitlines()
    assert "declared before / after the results were known" in head
    assert [c.strip() for c in line.strip("|").split("|")][3:5] == ["**not testable on MNIST**", "after"]
    assert r"c & not testable on MNIST & after & both methods saturate. Outcome of the earlier rule" in latex


def test_the_tables_show_what_was_observed_and_count_what_was_judged(tmp_path):
    seen = judged(VALUE, runs("ours", [85.0]), declared="before")
    words = ("reproduced", "missed", "not run", "not testable on MNIST")
    rest = [claims.Judgement("d", "s", "q", word, "e") for word in words]
    assert [v.judged for v in (seen, *rest)] == [False, True, True, False, False]
    known = numbers.collect(
        runs("ours", [85.0]), [seen, *rest], SimpleNamespace(experiments={}, labels={}, results=Path("none"))
    )
    counts = {k: known[f"verdicts.{k}"] for k in ("judged", "observed", "untestable", "not-run")}
    assert counts == {"judged": "2", "observed": "1", "untestable": "1", "not-run": "1"}
    assert known["verdict.c"] == "observed"
    assert "c & observed & before & 85.00" in verdicts.verdict_latex([seen, *rest])
    assert "declared before" not in verdicts.verdict_table(rest, REAL)
    frame = pd.DataFrame(columns=COLUMNS)
    whole = page.html(REAL, page.Content(frame, verdicts=[seen, *rest]))
    assert ">declared before / after the results were known</th>" in whole
    assert "observed" in whole
    assert ">declared" not in page.html(REAL, page.Content(frame, verdicts=rest))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reduced": {k: v for k, v in VALUE.items() if k != "decides"}}, "reduced: field 'decides' is missing"),
        ({"reduced": VALUE | {"epochs": "ten"}}, "reduced: field 'epochs': Input should be a valid integer"),
        ({"reduced": UNTESTABLE}, "rule 'untestable' judges no runs, so it has no reduced schedule"),
        ({"reduced": VALUE | {"type": "values"}}, "did you mean 'value'?"),
        ({"declared": "later"}, "claim 'a': field 'declared': Input should be 'before', 'after'"),
    ],
)
def test_reduced_rules_of_the_wrong_form_are_refused(tmp_path, changed, words):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [GOOD | changed]}))
    with pytest.raises(CrbgError) as caught:
        claims.read_claims(path)
    assert words in str(caught.value)
    path.write_text(yaml.safe_dump({"claims": [GOOD | {"reduced": VALUE, "declared": "before", "first": "f"}]}))
    assert claims.read_claims(path).claims[0].first == "f"


def test_a_published_point_stands_in_the_figure_of_the_reduced_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim = GOOD | {"source": "thesis, CNNs", "rule": FULL | {"at": 0.2}, "reduced": VALUE | {"at": 0.1}}
    for name, points in (("short", [(0.1, 80.0, "thesis")]), ("long", [(0.2, 80.0, "thesis")]), ("other", [])):
        declared = claims.parse_claims({"claims": [claim]})
        assert published.of_experiment(declared, SimpleNamespace(name=name), REAL).points == points


# --- the project's own claims ---


def named(rule):
    """Return (arm, density) of all runs that a reduced rule uses."""
    others = [o for o in getattr(rule, "others", ()) if o not in rule.whole]
    arms = [rule.arm, *others, *([rule.reference] if rule.type == "cheaper" else [])]
    found = {(arm, d) for arm in arms for d in rule.densities} | {(arm, None) for arm in getattr(rule, "whole", ())}
    if rule.type == "loss":
        found.add((rule.reference, rule.reference_density))
    if rule.type == "frontier":
        found |= {(rule.other, rule.density), (rule.reference or rule.other, rule.reference_density)}
    return found


def reduced_claims():
    return [c for c in claims.read_claims().claims if c.reduced]


def test_reduced_rules_name_what_the_configuration_runs_once_it_does(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = configs.read(["config.yaml"])
    assert len(reduced_claims()) > 20
    for claim in reduced_claims():
        rule = claim.reduced.rule
        assert claim.declared == "before"
        shorter = {("cost", "lenet_cts_second"), ("order", "conv2_strong")}
        assert rule.experiment.startswith("deep_") or (claim.kind, rule.experiment) in shorter
        if rule.experiment not in config.experiments:
            continue  # not in the configuration yet, so it has no rows
        e = config.experiments[rule.experiment]
        assert e.role == "main"
        assert named(rule) <= {(c.arm, c.spec.density) for c in e.cells}, claim.id
        epochs = {c.spec.epochs for c in e.cells if c.arm == rule.arm}
        assert epochs == {claim.reduced.schedule.epochs}, f"{claim.id}: the epochs of its schedule"


def test_a_claim_whose_experiment_is_not_configured_is_not_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    out = claims.judge(claims.Claims(claims=reduced_claims()), runs("nothing", [1.0]), REAL)
    assert {v.verdict for v in out} == {"not run"}


@pytest.mark.parametrize(("n", "words"), [(1, {"observed"}), (3, {"observed", "reproduced", "exceeded"})])
def test_every_reduced_rule_of_the_project_reads_runs_of_its_arms(monkeypatch, n, words):
    monkeypatch.chdir(ROOT)
    layers = {"depth": 0.9, "by_size": 0.5, "depth_alone": 0.8, "by_chance": 0.3, "tensors": 54}
    kinds, seen = ("none", "shuffle", "invert", "reinit"), set()
    for claim in reduced_claims():
        rule, schedule = claim.reduced.rule, claim.reduced.schedule
        frames = []
        for arm, density in named(rule):
            level = [(90.0 if arm == rule.arm else 70.0) + i / 10 for i in range(n)]
            more = {"experiment": rule.experiment, "epochs": schedule.epochs, **layers}
            if rule.type == "passes":
                drop = {k: 0 if k == "none" else 20 for k in kinds}
                for k in kinds:
                    frames.append(runs(arm, [a - drop[k] for a in level], density, setting=f"control {k}", **more))
            else:
                frames.append(runs(arm, level, density, **more))
        out = claims.judge(claims.Claims(claims=[claim]), pd.concat(frames), REAL)[0]
        said = out.measured
        assert out.verdict in words, (out.id, said)
        assert f"n = {n}" in said
        assert f"schedule of {schedule.epochs} epochs (published: {schedule.published_epochs})" in said
        assert not any(word in said for word in ("nan", "inf ", "inf]"))
        seen.add(out.verdict)
    assert seen == words
