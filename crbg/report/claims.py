"""Published claims -> verdicts, by rules that are data in paper/claims.yaml.

Rules are declared before the runs that they name are read. Where one was not, or was changed later, its entry says so.
A claim may carry a second rule, `reduced`, for runs of a far shorter schedule than the published one: see `_reduced`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from crbg.errors import CrbgError, suggest
from crbg.experiments.config import Config
from crbg.methods.crbg import LANDED
from crbg.report import stats
from crbg.report.records_table import by_width, setting, values
from crbg.report.tables import pipe, tex

CLAIMS = Path("paper/claims.yaml")
PUBLISHED = Path("paper/published.yaml")  # digitised points
FIELDS = ("id", "source", "quote", "kind", "reading", "rule")
OPTIONAL = ("reduced", "declared", "first")
DECLARED = ("before", "after")  # the first reading of the runs that the rule names
REDUCED: dict[str, tuple[type, ...]] = {  # what a reduced rule has to say, beside what its type asks for
    "experiment": (str,), "arm": (str,), "epochs": (int,), "published_epochs": (int, str), "decides": (str,),
}  # fmt: skip
ENOUGH = 3  # seeds from which on runs of a reduced schedule may confirm a claim
CONTRASTS = {  # lists of paired comparisons by when they were declared
    "first_contrasts": ("first round", "contrast declared before the first round"),
    "contrasts": ("", "contrast declared before the second round, after the first had been read"),
    "later_contrasts": ("asked later", "contrast asked for after both readings"),
}


@dataclass(frozen=True)
class Verdict:
    """A claim with its judgement and the evidence in words."""

    id: str
    source: str
    quote: str
    verdict: str
    evidence: str
    declared: str = ""  # before or after the first reading, where the entry says so
    experiment: str = ""  # whose runs the rule names

    @property
    def judged(self) -> bool:
        """Whether a rule has decided: what was not run, only observed, or cannot be tested is not judged."""
        return self.verdict not in ("not run", "observed") and not self.verdict.startswith("not testable")

    @property
    def measured(self) -> str:
        """The evidence without the reading of the claim."""
        return self.evidence.split(". Reading:")[0]

    @property
    def reading(self) -> str:
        """How the claim is read, without the evidence."""
        return self.evidence[len(self.measured) :].removeprefix(". Reading: ")


def read_claims(path: Path = CLAIMS) -> dict[str, Any]:
    """Read the claims and the declared contrasts, and check their form."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CrbgError(f"cannot read {path}: {error}") from None
    for claim in raw["claims"]:
        _check(claim, path)
    for name in CONTRASTS:
        if len(raw.get(name, [])) > 8:
            raise CrbgError(f"{path}: {len(raw[name])} {name.replace('_', ' ')} are declared; the protocol allows 8")
    return dict(raw)


def _check(claim: Mapping[str, Any], path: Path) -> None:
    """Refuse a claim whose fields or rules are not of the vocabulary."""
    missing = [f for f in FIELDS if f not in claim]
    unknown = [f for f in claim if f not in FIELDS + OPTIONAL]
    if missing or unknown:
        raise CrbgError(f"{path}: claim {claim.get('id', '?')!r} lacks {missing} or has unknown {unknown}")
    place, reduced = f"{path}: claim {claim['id']!r}", claim.get("reduced")
    for rule in (claim["rule"], reduced):
        if rule is not None and rule.get("type") not in RULES:
            raise CrbgError(f"{place}: {suggest(str(rule.get('type')), RULES)}")
    if wrong := [k for k, kinds in REDUCED.items() if reduced is not None and not isinstance(reduced.get(k), kinds)]:
        raise CrbgError(f"{place}: its reduced rule lacks {wrong}, or they are of the wrong kind")
    if claim.get("declared", "before") not in DECLARED:
        raise CrbgError(f"{place}: declared: {suggest(str(claim['declared']), DECLARED)}")


def judge(claims: Mapping[str, Any], rows: pd.DataFrame, config: Config) -> list[Verdict]:
    """Apply every rule to test accuracies of this configuration; a demonstration judges nothing."""
    out = []
    for claim in claims["claims"]:
        asked = not config.demonstration
        verdict, evidence = _judged(claim, rows) if asked else ("not run", "a demonstration judges nothing")
        first = f". First outcome: {claim['first']}" if "first" in claim else ""
        text = f"{evidence}{first}. Reading: {claim['reading']}"
        named = next((r["experiment"] for r in (claim["rule"], claim.get("reduced")) if r and "experiment" in r), "")
        out.append(
            Verdict(claim["id"], claim["source"], claim["quote"], verdict, text, claim.get("declared", ""), named)
        )
    if not config.demonstration:
        out += [_goal(g, rows) for g in claims.get("goals", [])]
        for name, (label, source) in CONTRASTS.items():
            out += _contrasts(claims.get(name, []), rows, label, source)
    return out


def _judged(claim: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Apply a claim's rule, or its reduced one where the runs that the first one names are not there."""
    rule, reduced = claim["rule"], claim.get("reduced")
    verdict, evidence = RULES[rule["type"]](rule, rows) if rule else ("not run", "no runs in this version")
    return _reduced(claim["kind"], reduced, rows) if reduced and _absent(verdict, evidence) else (verdict, evidence)


def _absent(verdict: str, evidence: str) -> bool:
    """Tell a rule without runs from one whose runs are there and could not be compared."""
    return verdict == "not run" and "no runs" in evidence


def _reduced(kind: str, rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge by runs of a schedule far below the published one: three seeds may confirm a claim, and none refutes one.

    Everything but a confirmation is `observed`. So is a cost, which a schedule changes, a rule that says
    `confirms: false`, and whatever stands on runs that collapsed or missed their density.
    """
    arm, experiment = rule["arm"], rule["experiment"]
    density = rule.get("density")
    densities = density if isinstance(density, list) else [density]
    mine = [values(rows, experiment, arm, d) for d in densities]
    missed = sum(int(found.density_missed.eq(True).sum()) for found in mine)
    lost = sum(_collapsed({**rule, "density": d}, rows, arm) for d in densities if d is not None)
    word, evidence = RULES[rule["type"]](rule, rows.assign(density_missed=False))
    if _absent(word, evidence) and not lost:
        return word, evidence
    seeds = [int(n) for n in re.findall(r"\bn = (\d+)", evidence)]
    parts = [evidence]
    if not seeds:
        parts += [f"{arm} {found.accuracy.mean():.2f} %, n = {len(found)}" for found in mine if len(found)]
    parts += [f"density missed in {missed} runs of {arm}"] if missed else []
    parts += [f"{lost} runs of {arm} ended without a ticket"] if lost else []
    parts += [_schedule(rule, rows), f"what would decide: {rule['decides']}"]
    sound = not missed and not lost and min(seeds, default=0) >= ENOUGH
    confirms = sound and kind != "cost" and rule.get("confirms", True) and word in ("exceeded", "reproduced")
    return word if confirms else "observed", "; ".join(parts)


def _schedule(rule: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """Say how long the runs were, whatever the rule expected, and how long the published ones."""
    ran = sorted({int(e) for e in rows[(rows.experiment == rule["experiment"]) & (rows.arm == rule["arm"])].epochs})
    declared = "" if ran == [rule["epochs"]] else f", {rule['epochs']} declared"
    return f"reduced schedule of {' and '.join(map(str, ran))} epochs{declared} (published: {rule['published_epochs']})"


def _untestable(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Say why data cannot test a claim, whatever is measured on them."""
    return f"not testable on {rule['on']}", rule["why"]


def _goal(goal: Mapping[str, Any], rows: pd.DataFrame) -> Verdict:
    """Judge an aim of our own: an accuracy that the interval, or at least the mean, has to reach."""
    mine = values(rows, goal["experiment"], goal["arm"], goal["density"])
    name = f"goal {goal['least']} % at {100 * (1 - goal['density']):g} %" + (
        f", {goal['label']}" if "label" in goal else ""
    )
    quote = f"{goal['arm']} reaches {goal['least']} % at {100 * (1 - goal['density']):g} % sparsity"
    if mine.empty:
        return Verdict(name, "our aim", quote, "not run", "no runs", experiment=goal["experiment"])
    i = stats.t_interval(list(mine.accuracy))
    word = "met" if i.low >= goal["least"] else "met in the mean" if i.mean >= goal["least"] else "missed"
    if mine.density_missed.astype(bool).any():
        word = "missed"
    evidence = f"{i.mean:.2f} %{_span(i, '.2f')} at {100 * (1 - mine.density.mean()):.1f} % sparsity, n = {i.n}"
    return Verdict(name, "our aim", quote, word, evidence, experiment=goal["experiment"])


def _contrasts(declared: list[dict[str, Any]], rows: pd.DataFrame, label: str, source: str) -> list[Verdict]:
    """Compare two arms for each entry of one list, with Holm's correction over the whole list."""
    done: list[tuple[dict[str, Any], stats.Contrast | None]] = []
    for c in declared:
        a = values(rows, c["experiment"], c["a"], c["density"])
        b = values(rows, c.get("against", c["experiment"]), c["b"], c["density"])
        if a.empty or b.empty:
            done.append((c, None))
            continue
        done.append((c, _compare(a, b)))
    adjusted = iter(stats.holm([r.p for _, r in done if r is not None], len(declared)))
    out = []
    for c, r in done:
        data = " (Fashion-MNIST)" if "fashion" in c["experiment"] else f" ({label})" if label else ""
        name = f"{c['a']} - {c['b']} at density {c['density']}{data}"
        if r is None:
            out.append(Verdict(name, source, name, "not run", "no runs", experiment=c["experiment"]))
            continue
        p, d = next(adjusted), r.difference
        word = "indistinguishable" if not p < 0.05 else f"{c['a'] if d.mean > 0 else c['b']} is better"
        evidence = f"{d.mean:+.2f} points{_span(d)}, {r.test}, n = {d.n}, Holm p = {p:.2g}"
        out.append(Verdict(name, source, f"{c['a']} against {c['b']}", word, evidence, experiment=c["experiment"]))
    return out


def _compare(a: pd.DataFrame, b: pd.DataFrame) -> stats.Contrast:
    """Test a - b: paired where all runs of both share their seeds, initial draws and data orders, Welch's test otherwise."""
    pairs = a.merge(b, on=["seed", "draw", "order"])
    if len(pairs) == len(a) == len(b):
        return stats.paired(list(pairs.accuracy_x), list(pairs.accuracy_y))
    return stats.welch(list(a.accuracy), list(b.accuracy))


def _span(i: stats.Interval, form: str = "+.2f") -> str:
    """Write the ends of an interval, to stand behind its mean; one seed has none."""
    return f" [{i.low:{form}}, {i.high:{form}}]" if math.isfinite(i.low) and math.isfinite(i.high) else ""


def _word(holds: bool, fails: bool) -> str:
    return "reproduced" if holds else "not reproduced" if fails else "inconclusive"


def _value(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge a published accuracy at a published sparsity: d = ours - published against the margin.

    With `shorter`, the share of the published budget that was run, falling short decides nothing.
    """
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"], reading=rule.get("mask", "binary"))
    if missed := _missed(rule, mine):
        return "not run", missed
    verdict, d = stats.value_verdict(list(mine.accuracy), rule["published"], rule["margin"])
    if d is None:
        return verdict, "no runs"
    closed = 1 - (mine.natural if rule.get("mask") == "half" else mine.units).astype(float).mean()
    units = f" with {100 * closed:.1f} % of the units closed," if mine.units.notna().all() else ""
    sparsity = 100 * (1 - mine.density.mean())
    if rule["density"] is None and mine.density.mean() > rule["at"]:
        verdict = "not reproduced"  # whatever the accuracy: it belongs to fewer dropped weights
    if "shorter" in rule and verdict == "not reproduced":
        verdict, units = "inconclusive", f" after {rule['shorter']} of the published search{units}"
    evidence = f"{mine.accuracy.mean():.2f} %{units} at {sparsity:.1f} % sparsity, d = {d.mean:+.2f}{_span(d)}"
    return verdict, f"{evidence}, margin {rule['margin']}, n = {d.n}"


def _missed(rule: Mapping[str, Any], mine: pd.DataFrame) -> str:
    """Say why runs that missed their density cannot be judged; the natural mask can where it is sparser than asked for."""
    missed = mine[mine.density_missed.astype(bool)]
    if rule.get("mask") == "half":
        missed = missed[~(missed.natural.astype(float) <= (1 + LANDED) * rule["density"])]
    return f"density missed in {len(missed)} of {len(mine)} runs" if len(missed) else ""


def _gap(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether binarising loses more than `most` points against the real-valued gates."""
    soft = values(rows, rule["experiment"], rule["arm"], rule["density"], reading="mean")
    hard = values(rows, rule["experiment"], rule["arm"], rule["density"], reading="half")
    if soft.empty:
        return "not run", "no runs"
    d = stats.paired(list(soft.accuracy), list(hard.accuracy)).difference
    verdict = _word(d.high <= rule["most"], d.low > rule["most"])
    return verdict, f"mean - half = {d.mean:+.2f} points{_span(d)}, at most {rule['most']} allowed, n = {d.n}"


def _loss(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an arm loses at most `most` points against a reference arm."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"])
    reference = values(
        rows, rule.get("reference_experiment", rule["experiment"]), rule["reference"], rule.get("reference_density")
    )
    if mine.empty or reference.empty:
        return "not run", "no runs"
    d = _compare(reference, mine).difference
    verdict = _word(d.high <= rule["most"], d.low > rule["most"])
    evidence = f"{rule['reference']} - {rule['arm']} = {d.mean:+.2f} points{_span(d)}"
    return verdict, f"{evidence}, at most {rule['most']}, n = {d.n}"


def _sanity(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether accuracy falls under every control: the upper end of the interval stays below its bound."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"])
    if mine.empty:
        return "not run", "no runs"
    parts, holds, refuted = [], True, False
    for control, bound in rule["at_most"].items():
        i = stats.t_interval(list(mine[control]))
        holds, refuted = holds and i.high <= bound, refuted or i.low > bound
        parts.append(f"{control} {i.mean:.1f} %{_span(i, '.1f')}, bound {bound}")
    return _word(holds, refuted), "; ".join(parts) + f", n = {len(mine)}"


def _frontier(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge "our method reaches `density`, theirs only `reference_density`, at comparable accuracy".

    It takes both halves: ours at `density` is within the margin of theirs at `reference_density`, and theirs at
    `density` is not. `reference` names the arm that stands at `reference_density` where it is another.
    """
    ours = values(rows, rule["experiment"], rule["arm"], rule["density"])
    theirs = values(rows, rule["experiment"], rule["other"], rule["density"])
    other = rule.get("reference", rule["other"])
    base = values(rows, rule["experiment"], other, rule["reference_density"])
    if ours.empty or theirs.empty or base.empty:
        return "not run", "no runs"
    pairs = [one.merge(base, on=["seed", "draw", "order"]) for one in (ours, theirs)]
    if any(len(p) < len(base) for p in pairs):
        return "not run", "the runs to compare are not pairs of the same seeds, draws and data orders"
    up, down = (stats.paired(list(p.accuracy_x), list(p.accuracy_y)).difference for p in pairs)
    m, loses = rule["margin"], stats.Interval(-down.mean, -down.high, -down.low, down.n)
    evidence = (
        f"{rule['arm']} at {rule['density']} - {other} at {rule['reference_density']} = {up.mean:+.2f}{_span(up)}; "
        f"{rule['other']} at {rule['density']} itself loses {loses.mean:.2f}{_span(loses, '.2f')}; "
        f"margin {m}, n = {up.n}"
    )
    return _word(up.low >= -m and down.high < -m, up.high < -m or down.low >= -m), evidence


def _collapsed(rule: Mapping[str, Any], rows: pd.DataFrame, arm: str) -> int:
    """Count the runs of an arm that ended without a ticket at the rule's density; they have no test accuracy to compare."""
    mine = rows[(rows.experiment == rule["experiment"]) & (rows.arm == arm) & (rows.status == "collapse")]
    return len(mine[(mine.asked - rule["density"]).abs() < 1e-9].drop_duplicates(["digest", "seed"]))


def _best(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an arm is better than every one of others, at a density or at each of several: all intervals lie above 0.

    With `within`, it may be worse by less than that. Others without a density may be named too: those of the experiment
    `among`, and those that `whole` names again. On `part: validation` an arm stands at its best setting.
    Arms that stand in the experiment `wider` with the same spec and more seeds are taken from there.
    """
    if isinstance(rule["density"], list):
        found = [_best({**rule, "density": d}, rows) for d in rule["density"]]
        words = [word for word, _ in found]
        text = "; ".join(evidence for _, evidence in found)
        return (
            "not run" if "not run" in words else _word(set(words) == {"reproduced"}, "not reproduced" in words)
        ), text
    ours = _chosen(rule, rows, rule["experiment"], rule["arm"], rule["density"])
    if ours.empty:
        return "not run", "no runs"
    more = _wider(rule, rows, rule["arm"], ours)
    lost = {arm: _collapsed(rule, rows, arm) for arm in (rule["arm"], *rule["others"])}
    parts, holds, refuted, least = [], True, False, -rule.get("within", 0)
    seeds = [len(ours)]
    for other in rule["others"]:
        asked = None if "among" in rule or other in rule.get("whole", ()) else rule["density"]
        theirs = _chosen(rule, rows, rule.get("among", rule["experiment"]), other, asked)
        if lost[rule["arm"]] or lost[other]:
            return "inconclusive", ", ".join(
                f"{lost[arm]} runs of {arm} collapsed" for arm in (rule["arm"], other) if lost[arm]
            )
        if theirs.empty:
            return "not run", f"no runs of {other}"
        theirs_too = _wider(rule, rows, other, theirs)
        wide = len(more) > len(ours) and len(theirs_too) > len(theirs)
        d = _compare(*((more, theirs_too) if wide else (ours, theirs))).difference
        holds, refuted = holds and d.low > least, refuted or d.high < least
        seeds.append(len(theirs))
        parts.append(f"- {other} {d.mean:+.2f}{_span(d)}" + (f" (n = {d.n})" if wide else ""))
    allowed = f"; at most {rule['within']} below" if "within" in rule else ""
    evidence = f"{rule['arm']} at {rule['density']}: {', '.join(parts)}{allowed}; n = {min(seeds)}{_where(rule)}"
    return _word(holds, refuted), evidence


def _wider(rule: Mapping[str, Any], rows: pd.DataFrame, arm: str, mine: pd.DataFrame) -> pd.DataFrame:
    """Give the runs of the same spec with more seeds, where the rule names an experiment that has them."""
    found = _chosen(rule, rows, rule["wider"], arm, rule["density"]) if "wider" in rule else mine
    return found if set(found.digest) == set(mine.digest) else mine


def _chosen(
    rule: Mapping[str, Any], rows: pd.DataFrame, experiment: str, arm: str, density: float | None
) -> pd.DataFrame:
    """Pick an arm's rows on the part that the rule reads; of several settings those of the best mean on validation, none on test."""
    mine = values(rows, experiment, arm, density, part=rule.get("part", "test"))
    if mine.digest.nunique() <= 1:
        return mine
    if rule.get("part") != "validation":
        return mine.iloc[:0]
    return max((g for _, g in mine.groupby("digest")), key=lambda g: g.accuracy.mean())


def _where(rule: Mapping[str, Any]) -> str:
    """Say beside the evidence that it was read on validation."""
    return ", validation" if rule.get("part") == "validation" else ""


def _passes(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether tickets pass the sanity checks: trained under every control they lose more than the margin, by all intervals.

    They fail where a control costs less than the margin. With `fail: true` it is claimed that they do.
    """
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"], part=rule.get("part", "test"))
    by = {str(setting(str(text)).get("control")): g for text, g in mine.groupby("setting")}
    if "none" not in by or len(by) < 2:
        return "not run", "no runs"
    losses = {name: _compare(by["none"], g).difference for name, g in by.items() if name != "none"}
    m = rule["margin"]
    passes, fails = all(d.low > m for d in losses.values()), any(d.high < m for d in losses.values())
    parts = ", ".join(f"{name} loses {d.mean:.2f}{_span(d, '.2f')}" for name, d in losses.items())
    verdict = _word(fails, passes) if rule.get("fail") else _word(passes, fails)
    n = min(map(len, by.values()))
    return verdict, f"{rule['arm']} at {rule['density']}: {parts}; margin {m}, n = {n}{_where(rule)}"


def _cheaper(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge "costs only a `times`-th": the ratio of both arms' seconds, geometric mean over seeds, within a tenth of what is claimed."""
    ours, theirs = (values(rows, rule["experiment"], rule[k], rule["density"]) for k in ("arm", "reference"))
    if ours.empty or theirs.empty:
        return "not run", "no runs"
    if ours.device.nunique() != 1 or set(ours.device) != set(theirs.device):
        return "not run", "the runs were timed on different machines"
    logs = [arm.assign(accuracy=[math.log(float(s)) for s in arm.search_seconds]) for arm in (theirs, ours)]
    d = _compare(*logs).difference
    ratio = stats.Interval(math.exp(d.mean), math.exp(d.low), math.exp(d.high), d.n)
    least = 0.9 * rule["times"]
    evidence = f"{rule['arm']} takes {ours.search_seconds.mean():.0f} s, {rule['reference']} {theirs.search_seconds.mean():.0f} s"
    evidence += f": {ratio.mean:.1f} times{_span(ratio, '.1f')}, {rule['times']} claimed, n = {d.n}"
    return _word(ratio.low >= least, ratio.high < least), evidence


def _floor(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an accuracy is reached at all."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"], reading=rule.get("mask", "binary"))
    if mine.empty:
        return "not run", "no runs"
    if missed := _missed(rule, mine):
        return "not run", missed
    i = stats.t_interval(list(mine.accuracy))
    verdict = _word(i.low >= rule["least"], i.high < rule["least"])
    return verdict, f"{i.mean:.2f} %{_span(i, '.2f')}, at least {rule['least']} asked, n = {i.n}"


def _deeper(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge "deeper layers are sparser": the rank correlation of sparsity with depth given layer size, one a run.

    Large layers can be sparser whatever their place, and in many networks the deep ones are the large ones. It holds
    where the whole interval lies above what layers in random order give in 95 of 100 draws, and fails where it lies
    below.
    """
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"])
    mine = mine[mine.depth_alone.notna()]
    if mine.empty:
        return "not run", "no runs"
    i, bound = stats.t_interval([float(d) for d in mine.depth_alone]), float(mine.by_chance.max())
    raw = f"with depth alone {mine.depth.mean():+.2f}, with size alone {mine.by_size.mean():+.2f}"
    chance = f"over {int(mine.tensors.max())} layers, random order gives up to {bound:.2f}; {raw}"
    evidence = f"rank correlation of sparsity with depth given layer size {i.mean:+.2f}{_span(i)} {chance}"
    return _word(i.low > bound, i.high < bound), f"{evidence}, n = {i.n}"


def _cells(rule: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Binary validation rows of one arm of an ablation by setting, each in the order of its seeds."""
    mine = rows[(rows.experiment == rule["experiment"]) & (rows.arm == rule["arm"])]
    mine = mine[(mine.part == "validation") & (mine.reading == "binary")].sort_values("seed")
    return {str(k): g for k, g in mine.groupby("setting", sort=False)}


def _order(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge which of two values of a field gives the better ticket, each at the best of its other settings, on validation."""
    best: dict[str, pd.DataFrame] = {}
    for text, g in _cells(rule, rows).items():
        kind = setting(text).get(rule["field"], "")
        if kind in (rule["a"], rule["b"]) and (kind not in best or g.accuracy.mean() > best[kind].accuracy.mean()):
            best[kind] = g
    if len(best) < 2:
        return "not run", "no runs"
    a, b = best[rule["a"]], best[rule["b"]]
    d = stats.paired(list(a.accuracy), list(b.accuracy)).difference
    verdict = _word(d.low > 0, d.high < 0)
    ends = (
        f"{k} {g.accuracy.mean():.2f} % at {100 * (1 - g.density.mean()):.1f} % sparsity ({g.setting.iloc[0]})"
        for k, g in best.items()
    )
    return verdict, f"{'; '.join(ends)}; difference {d.mean:+.2f}{_span(d)}, n = {d.n}, validation"


def _controls(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether a knob controls sparsity: from its least to its largest value sparsity rises at every value of another knob."""
    by: dict[float, dict[float, list[float]]] = {}
    for text, g in _cells(rule, rows).items():
        said = setting(text)
        by.setdefault(float(said[rule["other"]]), {})[float(said[rule["knob"]])] = list(100 * (1 - g.density))
    if not by or min(map(len, by.values())) < 2:
        return "not run", "no runs"
    rises = {held: stats.paired(cells[max(cells)], cells[min(cells)]).difference for held, cells in sorted(by.items())}
    verdict = _word(all(d.low > 0 for d in rises.values()), any(d.high <= 0 for d in rises.values()))
    parts = ", ".join(f"{d.mean:+.1f}{_span(d, '+.1f')} at {rule['other']} {held:g}" for held, d in rises.items())
    means = [[sum(c[k]) / len(c[k]) for c in by.values()] for k in next(iter(by.values()))]
    spans = [max(m) - min(m) for m in means]
    evidence = f"sparsity changes over {rule['knob']} by {parts} points; over {rule['other']} by {sum(spans) / len(spans):.1f} in the mean"
    return verdict, f"{evidence}, n = {min(d.n for d in rises.values())}, validation"


def _flat(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether accuracy stays near its best over a range: the loss of the worst setting against the best one.

    With `over`, the share of open gates must also end within that part of its budget in every setting.
    """
    cells = _cells(rule, rows)
    if len(cells) < 2:
        return "not run", "no runs"
    best, worst = (pick(cells.values(), key=lambda g: g.accuracy.mean()) for pick in (max, min))
    d = stats.welch(list(best.accuracy), list(worst.accuracy)).difference
    verdict = _word(d.high <= rule["most"], d.low > rule["most"])
    ends = " and ".join(f"{g.accuracy.mean():.2f} % at {g.setting.iloc[0]}" for g in (best, worst))
    evidence = f"{ends}: {d.mean:.2f} points{_span(d, '.2f')}, at most {rule['most']}"
    if "over" in rule:
        g = max(cells.values(), key=lambda g: g.over.abs().mean())
        verdict = verdict if g.over.abs().mean() <= rule["over"] else "not reproduced"
        evidence += (
            f"; {100 * g.over.mean():+.1f} % off the budget at {g.setting.iloc[0]}, at most {100 * rule['over']:g} %"
        )
    return verdict, f"{evidence}, n = {d.n}, validation"


def _widths(rule: Mapping[str, Any], rows: pd.DataFrame, arm: str, reading: str = "binary") -> dict[float, list[float]]:
    return by_width(
        rows[(rows.experiment == rule["experiment"]) & (rows.part == "test") & (rows.reading == reading)]
    ).get(arm, {})


def _width(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge every digitised point of the width sweep; the claim holds where none is missed."""
    ours = _widths(rule, rows, rule["arm"])
    if not ours:
        return "not run", "no runs"

    def against(ours: Mapping[float, list[float]]) -> list[tuple[str, str]]:
        found = []
        for point in yaml.safe_load(PUBLISHED.read_text())["width"]:
            near = min(ours, key=lambda w: abs(w - point["weights"]))
            word, d = stats.value_verdict(ours[near], point["accuracy"], rule["margin"])
            found.append((word, f"{near:.1f} %: {d.mean:+.1f}" if d else ""))
        return found

    def reached(found: list[tuple[str, str]]) -> int:
        return sum(w in ("exceeded", "reproduced") for w, _ in found)

    found = against(ours)
    words = [w for w, _ in found]
    soft = _widths(rule, rows, rule["arm"], "mean")
    real = f" ({reached(against(soft))} by the real-valued gates)" if soft else ""
    verdict = _word(reached(found) == len(words), "not reproduced" in words)
    if all(w == "exceeded" for w in words):
        verdict = "exceeded"
    n = min(len(v) for v in ours.values())
    return (
        verdict,
        f"{reached(found)} of {len(words)} points reached{real}; ours minus theirs by share of weights: "
        f"{', '.join(t for _, t in found)}; n = {n}",
    )


def _steady(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether the gap to a reference stays within a bound at every width."""
    ours, theirs = _widths(rule, rows, rule["arm"], rule.get("mask", "binary")), _widths(rule, rows, rule["reference"])
    shared = sorted(set(ours) & set(theirs), reverse=True)
    if not shared:
        return "not run", "no runs"
    gaps = {w: stats.welch(theirs[w], ours[w]).difference for w in shared}
    holds, fails = all(d.high <= rule["most"] for d in gaps.values()), any(d.low > rule["most"] for d in gaps.values())
    text = ", ".join(f"{w:.1f} %: {d.mean:.1f}" for w, d in gaps.items())
    evidence = f"{rule['reference']} - {rule['arm']} by share of weights: {text}; at most {rule['most']}"
    return _word(holds, fails), f"{evidence}, n = {min(d.n for d in gaps.values())}"


RULES = {
    "value": _value, "gap": _gap, "loss": _loss, "sanity": _sanity, "frontier": _frontier, "floor": _floor, "best": _best, "order": _order,
    "controls": _controls, "flat": _flat, "width": _width, "steady": _steady, "deeper": _deeper,
    "cheaper": _cheaper, "passes": _passes, "untestable": _untestable,
}  # fmt: skip


def verdict_table(verdicts: list[Verdict], config: Config) -> str:
    """Write the verdicts as Markdown."""
    head = "**A demonstration: nothing is judged.**\n\n" if config.demonstration else ""
    rows = []
    for v in verdicts:
        when = {"declared before / after the first reading": v.declared} if any(w.declared for w in verdicts) else {}
        said = {"claim": v.id, "source": v.source, "quote": v.quote, "verdict": f"**{v.verdict}**"}
        rows.append(said | when | {"evidence": v.evidence})
    return head + pipe(rows) + "\n"


def verdict_latex(verdicts: list[Verdict]) -> str:
    """Write what was judged or observed as a LaTeX longtable: claim, verdict, when its rule was declared, evidence."""
    shown = [v for v in verdicts if v.verdict != "not run"]
    lines = [" & ".join(map(tex, (v.id, v.verdict, v.declared, v.measured))) + r" \\" for v in shown]
    widths = "".join(rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in (0.23, 0.12, 0.07, 0.48))
    titles = r"claim & verdict & declared & evidence \\"
    head = [rf"\begin{{longtable}}{{{widths}}}", r"\toprule", titles, r"\midrule", r"\endhead"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{longtable}"]) + "\n"
