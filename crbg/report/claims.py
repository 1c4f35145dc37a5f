"""Published claims -> verdicts, by rules that are data in paper/claims.yaml and were written before the test set was opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from crbg import stats
from crbg.config import Config
from crbg.errors import CrbgError, choose
from crbg.methods.crbg import LANDED
from crbg.report.tables import pipe, tex
from crbg.report.tidy import by_width, setting, values

CLAIMS = Path("paper/claims.yaml")
PUBLISHED = Path("paper/published.yaml")  # digitised points
FIELDS = ("id", "source", "quote", "kind", "reading", "rule")
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

    @property
    def measured(self) -> str:
        """The evidence without the reading of the claim."""
        return self.evidence.split(". Reading:")[0]


def read_claims(path: Path = CLAIMS) -> dict[str, Any]:
    """Read the claims and the declared contrasts, and check their form."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CrbgError(f"cannot read {path}: {error}") from None
    for claim in raw["claims"]:
        missing = [f for f in FIELDS if f not in claim]
        unknown = [f for f in claim if f not in FIELDS]
        if missing or unknown:
            raise CrbgError(f"{path}: claim {claim.get('id', '?')!r} lacks {missing} or has unknown {unknown}")
        if claim["rule"] is not None and claim["rule"].get("type") not in RULES:
            raise CrbgError(f"{path}: claim {claim['id']!r}: {choose(str(claim['rule'].get('type')), RULES)}")
    for name in CONTRASTS:
        if len(raw.get(name, [])) > 8:
            raise CrbgError(f"{path}: {len(raw[name])} {name.replace('_', ' ')} are declared; the protocol allows 8")
    return dict(raw)


def judge(claims: Mapping[str, Any], rows: pd.DataFrame, config: Config) -> list[Verdict]:
    """Apply every rule to test accuracies of this configuration; a demonstration judges nothing."""
    out = []
    for claim in claims["claims"]:
        rule = claim["rule"]
        if config.demonstration:
            verdict, evidence = "not run", "a demonstration judges nothing"
        elif rule is None:
            verdict, evidence = "not run", "no runs in this version"
        else:
            verdict, evidence = RULES[rule["type"]](rule, rows)
        out.append(Verdict(claim["id"], claim["source"], claim["quote"], verdict, f"{evidence}. Reading: {claim['reading']}"))
    if not config.demonstration:
        out += [_goal(g, rows) for g in claims.get("goals", [])]
        for name, (label, source) in CONTRASTS.items():
            out += _contrasts(claims.get(name, []), rows, label, source)
    return out


def _goal(goal: Mapping[str, Any], rows: pd.DataFrame) -> Verdict:
    """Judge an aim of our own: an accuracy that the interval, or at least the mean, has to reach."""
    mine = values(rows, goal["experiment"], goal["arm"], goal["density"])
    name = f"goal {goal['least']} % at {100 * (1 - goal['density']):g} %" + (f", {goal['label']}" if "label" in goal else "")
    quote = f"{goal['arm']} reaches {goal['least']} % at {100 * (1 - goal['density']):g} % sparsity"
    if mine.empty:
        return Verdict(name, "our aim", quote, "not run", "no runs")
    i = stats.t_interval(list(mine.accuracy))
    word = "met" if i.low >= goal["least"] else "met in the mean" if i.mean >= goal["least"] else "missed"
    if mine.density_missed.astype(bool).any():
        word = "missed"
    evidence = f"{i.mean:.2f} % [{i.low:.2f}, {i.high:.2f}] at {100 * (1 - mine.density.mean()):.1f} % sparsity, n = {i.n}"
    return Verdict(name, "our aim", quote, word, evidence)


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
            out.append(Verdict(name, source, name, "not run", "no runs"))
            continue
        p, d = next(adjusted), r.difference
        word = "indistinguishable" if not p < 0.05 else f"{c['a'] if d.mean > 0 else c['b']} is better"
        evidence = f"{d.mean:+.2f} points [{d.low:+.2f}, {d.high:+.2f}], {r.test}, n = {d.n}, Holm p = {p:.2g}"
        out.append(Verdict(name, source, f"{c['a']} against {c['b']}", word, evidence))
    return out


def _compare(a: pd.DataFrame, b: pd.DataFrame) -> stats.Contrast:
    """Test a - b: paired where all runs of both share their seeds, initial draws and data orders, Welch's test otherwise."""
    pairs = a.merge(b, on=["seed", "draw", "order"])
    if len(pairs) == len(a) == len(b):
        return stats.paired(list(pairs.accuracy_x), list(pairs.accuracy_y))
    return stats.welch(list(a.accuracy), list(b.accuracy))


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
    return verdict, (
        f"{mine.accuracy.mean():.2f} %{units} at {sparsity:.1f} % sparsity, d = {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}], "
        f"margin {rule['margin']}, n = {d.n}"
    )


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
    return verdict, f"mean - half = {d.mean:+.2f} points [{d.low:+.2f}, {d.high:+.2f}], at most {rule['most']} allowed, n = {d.n}"


def _loss(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an arm loses at most `most` points against a reference arm."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"])
    reference = values(rows, rule.get("reference_experiment", rule["experiment"]), rule["reference"], rule.get("reference_density"))
    if mine.empty or reference.empty:
        return "not run", "no runs"
    d = _compare(reference, mine).difference
    verdict = _word(d.high <= rule["most"], d.low > rule["most"])
    evidence = f"{rule['reference']} - {rule['arm']} = {d.mean:+.2f} points [{d.low:+.2f}, {d.high:+.2f}]"
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
        parts.append(f"{control} {i.mean:.1f} % [{i.low:.1f}, {i.high:.1f}], bound {bound}")
    return _word(holds, refuted), "; ".join(parts) + f", n = {len(mine)}"


def _frontier(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge "our method reaches `density`, theirs only `reference_density`, at comparable accuracy".

    It takes both halves: ours at `density` is within the margin of theirs at `reference_density`, and theirs at `density`
    is not.
    """
    ours = values(rows, rule["experiment"], rule["arm"], rule["density"])
    theirs = values(rows, rule["experiment"], rule["other"], rule["density"])
    base = values(rows, rule["experiment"], rule["other"], rule["reference_density"])
    if ours.empty or theirs.empty or base.empty:
        return "not run", "no runs"
    pairs = [one.merge(base, on=["seed", "draw", "order"]) for one in (ours, theirs)]
    if any(len(p) < len(base) for p in pairs):
        return "not run", "the runs to compare are not pairs of the same seeds, draws and data orders"
    up, down = (stats.paired(list(p.accuracy_x), list(p.accuracy_y)).difference for p in pairs)
    m = rule["margin"]
    evidence = (
        f"{rule['arm']} at {rule['density']} - {rule['other']} at {rule['reference_density']} = "
        f"{up.mean:+.2f} [{up.low:+.2f}, {up.high:+.2f}]; "
        f"{rule['other']} at {rule['density']} itself loses {-down.mean:.2f} [{-down.high:.2f}, {-down.low:.2f}]; margin {m}, n = {up.n}"
    )
    return _word(up.low >= -m and down.high < -m, up.high < -m or down.low >= -m), evidence


def _collapsed(rule: Mapping[str, Any], rows: pd.DataFrame, arm: str) -> int:
    """Count the runs of an arm that ended without a ticket at the rule's density; they have no test accuracy to compare."""
    mine = rows[(rows.experiment == rule["experiment"]) & (rows.arm == arm) & (rows.status == "collapse")]
    return len(mine[(mine.asked - rule["density"]).abs() < 1e-9].drop_duplicates(["digest", "seed"]))


def _best(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an arm is better than every one of others, at a density or at each of several: all intervals lie above 0.

    Others without a density, from the experiment `among`, may be named too. On `part: validation` an arm stands at its best setting.
    Arms that stand in the experiment `wider` with the same spec and more seeds are taken from there.
    """
    if isinstance(rule["density"], list):
        found = [_best({**rule, "density": d}, rows) for d in rule["density"]]
        words = [word for word, _ in found]
        text = "; ".join(evidence for _, evidence in found)
        return ("not run" if "not run" in words else _word(set(words) == {"reproduced"}, "not reproduced" in words)), text
    ours = _chosen(rule, rows, rule["experiment"], rule["arm"], rule["density"])
    if ours.empty:
        return "not run", "no runs"
    more = _wider(rule, rows, rule["arm"], ours)
    lost = {arm: _collapsed(rule, rows, arm) for arm in (rule["arm"], *rule["others"])}
    parts, holds, refuted = [], True, False
    for other in rule["others"]:
        asked = None if "among" in rule else rule["density"]
        theirs = _chosen(rule, rows, rule.get("among", rule["experiment"]), other, asked)
        if lost[rule["arm"]] or lost[other]:
            return "inconclusive", ", ".join(f"{lost[arm]} runs of {arm} collapsed" for arm in (rule["arm"], other) if lost[arm])
        if theirs.empty:
            return "not run", f"no runs of {other}"
        theirs_too = _wider(rule, rows, other, theirs)
        wide = len(more) > len(ours) and len(theirs_too) > len(theirs)
        d = _compare(*((more, theirs_too) if wide else (ours, theirs))).difference
        holds, refuted = holds and d.low > 0, refuted or d.high < 0
        parts.append(f"- {other} {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]" + (f" (n = {d.n})" if wide else ""))
    return _word(holds, refuted), f"{rule['arm']} at {rule['density']}: " + ", ".join(parts) + f"; n = {len(ours)}{_where(rule)}"


def _wider(rule: Mapping[str, Any], rows: pd.DataFrame, arm: str, mine: pd.DataFrame) -> pd.DataFrame:
    """Give the runs of the same spec with more seeds, where the rule names an experiment that has them."""
    found = _chosen(rule, rows, rule["wider"], arm, rule["density"]) if "wider" in rule else mine
    return found if set(found.digest) == set(mine.digest) else mine


def _chosen(rule: Mapping[str, Any], rows: pd.DataFrame, experiment: str, arm: str, density: float | None) -> pd.DataFrame:
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
    parts = ", ".join(f"{name} loses {d.mean:.2f} [{d.low:.2f}, {d.high:.2f}]" for name, d in losses.items())
    verdict = _word(fails, passes) if rule.get("fail") else _word(passes, fails)
    return verdict, f"{rule['arm']} at {rule['density']}: {parts}; margin {m}, n = {len(by['none'])}{_where(rule)}"


def _cheaper(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge "costs only a `times`-th": the ratio of both arms' seconds, geometric mean over seeds, within a tenth of what is claimed."""
    ours, theirs = (values(rows, rule["experiment"], rule[k], rule["density"]) for k in ("arm", "reference"))
    if ours.empty or theirs.empty:
        return "not run", "no runs"
    if ours.device.nunique() != 1 or set(ours.device) != set(theirs.device):
        return "not run", "the runs were timed on different machines"
    logs = [arm.assign(accuracy=[math.log(float(s)) for s in arm.search_seconds]) for arm in (theirs, ours)]
    d = _compare(*logs).difference
    low, mean, high = (math.exp(v) for v in (d.low, d.mean, d.high))
    least = 0.9 * rule["times"]
    evidence = f"{rule['arm']} takes {ours.search_seconds.mean():.0f} s, {rule['reference']} {theirs.search_seconds.mean():.0f} s"
    return _word(low >= least, high < least), f"{evidence}: {mean:.1f} times [{low:.1f}, {high:.1f}], {rule['times']} claimed, n = {d.n}"


def _floor(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an accuracy is reached at all."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"], reading=rule.get("mask", "binary"))
    if mine.empty:
        return "not run", "no runs"
    if missed := _missed(rule, mine):
        return "not run", missed
    i = stats.t_interval(list(mine.accuracy))
    verdict = _word(i.low >= rule["least"], i.high < rule["least"])
    return verdict, f"{i.mean:.2f} % [{i.low:.2f}, {i.high:.2f}], at least {rule['least']} asked, n = {i.n}"


def _deeper(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge "deeper layers are sparser" by the rank correlation of a layer's sparsity with its depth, one a run.

    Layers in random order, as one threshold over random scores gives, correlate within 1.96 / sqrt(layers - 1) of 0 in 95 of
    100 draws. It holds where the whole interval lies above that, and fails where it lies below.
    """
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"])
    mine = mine[mine.depth.notna()]
    if mine.empty:
        return "not run", "no runs"
    i, layers = stats.t_interval([float(d) for d in mine.depth]), int(mine.tensors.max())
    bound = 1.96 / math.sqrt(layers - 1)
    evidence = f"rank correlation {i.mean:+.2f} [{i.low:+.2f}, {i.high:+.2f}] over {layers} layers, random order gives up to {bound:.2f}"
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
        f"{k} {g.accuracy.mean():.2f} % at {100 * (1 - g.density.mean()):.1f} % sparsity ({g.setting.iloc[0]})" for k, g in best.items()
    )
    return verdict, f"{'; '.join(ends)}; difference {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}], n = {d.n}, validation"


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
    parts = ", ".join(f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}] at {rule['other']} {held:g}" for held, d in rises.items())
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
    evidence = f"{ends}: {d.mean:.2f} points [{d.low:.2f}, {d.high:.2f}], at most {rule['most']}"
    if "over" in rule:
        g = max(cells.values(), key=lambda g: g.over.abs().mean())
        verdict = verdict if g.over.abs().mean() <= rule["over"] else "not reproduced"
        evidence += f"; {100 * g.over.mean():+.1f} % off the budget at {g.setting.iloc[0]}, at most {100 * rule['over']:g} %"
    return verdict, f"{evidence}, n = {d.n}, validation"


def _widths(rule: Mapping[str, Any], rows: pd.DataFrame, arm: str, reading: str = "binary") -> dict[float, list[float]]:
    return by_width(rows[(rows.experiment == rule["experiment"]) & (rows.part == "test") & (rows.reading == reading)]).get(arm, {})


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
    "cheaper": _cheaper, "passes": _passes,
}  # fmt: skip


def verdict_table(verdicts: list[Verdict], config: Config) -> str:
    """Write the verdicts as Markdown."""
    head = "**A demonstration: nothing is judged.**\n\n" if config.demonstration else ""
    rows = [{"claim": v.id, "source": v.source, "quote": v.quote, "verdict": f"**{v.verdict}**", "evidence": v.evidence} for v in verdicts]
    return head + pipe(rows) + "\n"


def verdict_latex(verdicts: list[Verdict]) -> str:
    """Write what was judged as a LaTeX longtable: claim, verdict, evidence."""
    judged = [v for v in verdicts if v.verdict != "not run"]
    lines = [" & ".join(map(tex, (v.id, v.verdict, v.measured))) + r" \\" for v in judged]
    widths = "".join(rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in (0.24, 0.13, 0.53))
    head = [rf"\begin{{longtable}}{{{widths}}}", r"\toprule", r"claim & verdict & evidence \\", r"\midrule", r"\endhead"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{longtable}"]) + "\n"
