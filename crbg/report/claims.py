"""Published claims -> verdicts, by rules that are data in paper/claims.yaml and were written before the test set was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tabulate import tabulate

from crbg import stats
from crbg.config import Config
from crbg.errors import CrbgError, choose
from crbg.report.tidy import values

CLAIMS = Path("paper/claims.yaml")
FIELDS = ("id", "source", "quote", "kind", "reading", "rule")


@dataclass(frozen=True)
class Verdict:
    """A claim with its judgement and the evidence in words."""

    id: str
    source: str
    quote: str
    verdict: str
    evidence: str


def read_claims(path: Path = CLAIMS) -> dict[str, Any]:
    """Read the claims and the pre-declared contrasts, and check their form."""
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
    if len(raw["contrasts"]) > 8:
        raise CrbgError(f"{path}: {len(raw['contrasts'])} contrasts are declared; the protocol allows 8")
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
        out += _contrasts(claims["contrasts"], rows)
    return out


def _contrasts(declared: list[dict[str, Any]], rows: pd.DataFrame) -> list[Verdict]:
    done: list[tuple[dict[str, Any], stats.Contrast | None]] = []
    for c in declared:
        a, b = (values(rows, c["experiment"], c[k], c["density"]) for k in ("a", "b"))
        if a.empty or b.empty:
            done.append((c, None))
            continue
        pairs = list(zip(a.seed, a.draw, a.order, strict=True)) == list(zip(b.seed, b.draw, b.order, strict=True))
        test = stats.paired if pairs else stats.welch
        done.append((c, test(list(a.accuracy), list(b.accuracy))))
    adjusted = iter(stats.holm([r.p for _, r in done if r is not None], len(declared)))
    out = []
    for c, r in done:
        name = f"{c['a']} - {c['b']} at density {c['density']}"
        if r is None:
            out.append(Verdict(name, "pre-declared contrast", name, "not run", "no runs"))
            continue
        p, d = next(adjusted), r.difference
        word = "indistinguishable" if not p < 0.05 else f"{c['a'] if d.mean > 0 else c['b']} is better"
        evidence = f"{d.mean:+.2f} points [{d.low:+.2f}, {d.high:+.2f}], {r.test}, n = {d.n}, Holm p = {p:.2g}"
        out.append(Verdict(name, "pre-declared contrast", f"{c['a']} against {c['b']}", word, evidence))
    return out


def _value(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge a published accuracy at a published sparsity: d = ours - published against the margin."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"], reading=rule.get("mask", "binary"))
    if mine.density_missed.astype(bool).any():
        return "not run", f"density missed in {int(mine.density_missed.astype(bool).sum())} of {len(mine)} runs"
    verdict, d = stats.value_verdict(list(mine.accuracy), rule["published"], rule["margin"])
    if d is None:
        return verdict, "no runs"
    sparsity = 100 * (1 - mine.density.mean())
    return verdict, (
        f"{mine.accuracy.mean():.2f} % at {sparsity:.1f} % sparsity, d = {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}], "
        f"margin {rule['margin']}, n = {d.n}"
    )


def _gap(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether binarising loses more than `most` points against the real-valued gates."""
    soft = values(rows, rule["experiment"], rule["arm"], rule["density"], reading="mean")
    hard = values(rows, rule["experiment"], rule["arm"], rule["density"], reading="half")
    if soft.empty:
        return "not run", "no runs"
    d = stats.paired(list(soft.accuracy), list(hard.accuracy)).difference
    verdict = "reproduced" if d.high <= rule["most"] else "not reproduced" if d.low > rule["most"] else "inconclusive"
    return verdict, f"mean - half = {d.mean:+.2f} points [{d.low:+.2f}, {d.high:+.2f}], at most {rule['most']} allowed, n = {d.n}"


def _loss(rule: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """Judge whether an arm loses at most `most` points against a reference arm."""
    mine = values(rows, rule["experiment"], rule["arm"], rule["density"])
    reference = values(rows, rule["experiment"], rule["reference"], None)
    if mine.empty or reference.empty:
        return "not run", "no runs"
    d = stats.welch(list(reference.accuracy), list(mine.accuracy)).difference
    verdict = "reproduced" if d.high <= rule["most"] else "not reproduced" if d.low > rule["most"] else "inconclusive"
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
    return ("reproduced" if holds else "not reproduced" if refuted else "inconclusive"), "; ".join(parts) + f", n = {len(mine)}"


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
    if up.low >= -m and down.high < -m:
        return "reproduced", evidence
    return ("not reproduced" if up.high < -m or down.low >= -m else "inconclusive"), evidence


RULES = {"value": _value, "gap": _gap, "loss": _loss, "sanity": _sanity, "frontier": _frontier}


def verdict_table(verdicts: list[Verdict], config: Config) -> str:
    """Write the verdicts as Markdown."""
    head = "**A demonstration: nothing is judged.**\n\n" if config.demonstration else ""
    rows = [{"claim": v.id, "source": v.source, "quote": v.quote, "verdict": f"**{v.verdict}**", "evidence": v.evidence} for v in verdicts]
    return head + tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True) + "\n"
