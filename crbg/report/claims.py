"""Published claims and the verdicts on them. The rules that judge the claims are data in paper/claims.yaml.

A rule is declared before anybody sees the results of the runs that it names. If a rule was declared or changed later,
its entry says so. A claim may have a second rule, `reduced`, for runs on a far shorter schedule than the published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import Field

from crbg.errors import CrbgError
from crbg.experiments.config import Config
from crbg.report import stats
from crbg.report.declared import D, Declared, fields_of, parse
from crbg.report.records_table import values
from crbg.report.rules import ArmRule, Reduced, Rule, Verdict, compare, not_run, read_reduced, read_rule, span

CLAIMS = Path("paper/claims.yaml")
MOST = 8  # largest number of contrasts in one list; Holm's correction is applied to each list
CONTRASTS = {  # lists of contrasts, by the time at which they were declared
    "first_contrasts": ("first round", "contrast declared before the first round"),
    "contrasts": ("", "contrast declared before the second round, when the results of the first were known"),
    "later_contrasts": ("asked later", "contrast declared when the results of both rounds were known"),
}


class Claim(Declared):
    """A published claim.

    reading: how we interpret the claim. rule: None if nothing was run for it. first: the outcome of an earlier rule.
    declared: whether the rule was declared before or after the results of its runs were first seen.
    """

    id: str
    source: str
    quote: str
    kind: Literal["value", "order", "existence", "cost"]
    reading: str
    rule: Rule | None
    reduced: Reduced | None = None
    declared: Literal["before", "after", ""] = ""
    first: str = ""

    @property
    def rules(self) -> list[Rule]:
        """The rule of the claim and its rule for reduced schedules, if they exist."""
        return [r for r in (self.rule, self.reduced.rule if self.reduced else None) if r is not None]


class Contrast(Declared):
    """A comparison of the arms `a` and `b` at one density. `against`: the experiment of `b`, if it is another one."""

    experiment: str
    a: str
    b: str
    density: float
    against: str = ""


class Goal(Declared):
    """An accuracy in % that we want an arm to reach at a density."""

    experiment: str
    arm: str
    density: float
    least: float
    label: str = ""


class Comparison(Declared):
    """A row of the thesis's comparison table. `constant`: the accuracy of the most frequent class."""

    row: str
    published: str
    experiment: str = ""
    arm: str = ""
    density: float | None = None
    constant: bool = False


class Claims(Declared):
    """All entries of the file. `schedules` only contains YAML anchors for reduced rules; it is not used otherwise."""

    claims: tuple[Claim, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    first_contrasts: tuple[Contrast, ...] = ()
    later_contrasts: tuple[Contrast, ...] = ()
    goals: tuple[Goal, ...] = ()
    comparison: tuple[Comparison, ...] = ()
    schedules: Mapping[str, Any] = Field(default_factory=dict)

    def contrast_list(self, name: str) -> tuple[Contrast, ...]:
        """Return a list of contrasts by its name in CONTRASTS."""
        return tuple(getattr(self, name))


@dataclass(frozen=True)
class Judgement:
    """A claim, goal or contrast with its verdict and the evidence in words.

    reading: how we interpret the claim. declared: whether the rule was declared before or after the results of its runs
    were first seen, if the entry says so. experiment: the experiment whose runs were judged.
    """

    id: str
    source: str
    quote: str
    verdict: str
    measured: str
    reading: str = ""
    declared: str = ""
    experiment: str = ""

    @property
    def judged(self) -> bool:
        """Whether the rule gave a verdict other than `not run`, `observed` or `not testable`."""
        return kind_of(self.verdict) not in ("not run", "observed", "not testable")

    @property
    def evidence(self) -> str:
        """The measured evidence, followed by our interpretation of the claim."""
        return f"{self.measured}. Interpretation: {self.reading}" if self.reading else self.measured


def kind_of(verdict: str) -> str:
    """Return the word of a verdict without its details: "not testable" for every verdict that begins so."""
    return "not testable" if verdict.startswith("not testable") else verdict


def read_claims(path: Path = CLAIMS) -> Claims:
    """Read paper/claims.yaml.

    Raises:
        CrbgError: the file cannot be read, or entries are malformed; the message names all malformed entries.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CrbgError(f"cannot read {path}: {error}") from None
    return parse_claims(raw, str(path))


def parse_claims(raw: object, place: str = str(CLAIMS)) -> Claims:
    """Validate all entries and convert them to objects.

    Raises:
        CrbgError: names every malformed entry, with its place.
    """
    kinds: dict[str, type[Declared]] = {"claims": Claim, "goals": Goal, "comparison": Comparison}
    kinds |= dict.fromkeys(CONTRASTS, Contrast)
    out, problems, ids = fields_of(raw, place), list[str](), list[str]()
    for name, kind in kinds.items():
        entries = out.get(name) or []
        if not isinstance(entries, list):
            problems.append(f"{place}: {name} must be a list of entries, not {entries!r:.80}")
            continue
        out[name] = [_entry(kind, name, i, entry, place, problems) for i, entry in enumerate(entries, start=1)]
        if kind is Claim:
            ids = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        if name in CONTRASTS and len(entries) > MOST:
            words = name.replace("_", " ")
            problems.append(f"{place}: {len(entries)} {words} are declared; the protocol allows at most {MOST}")
    problems += [f"{place}: claim {name!r} is declared twice" for name in dict.fromkeys(ids) if ids.count(name) > 1]
    if problems:
        raise CrbgError("\n".join(problems))
    return parse(Claims, out, place)


def _entry(kind: type[D], name: str, i: int, raw: object, file: str, problems: list[str]) -> D | None:
    """Read one entry of a list; error messages are appended to `problems`."""
    place, found = f"{file}: {name}, entry {i}", len(problems)
    try:
        entry = fields_of(raw, place)
        place = f"{file}: claim {entry.get('id', i)!r}" if kind is Claim else place
        for key, read in (("rule", read_rule), ("reduced", read_reduced)) if kind is Claim else ():
            if entry.get(key) is not None:
                try:
                    entry[key] = read(entry[key], f"{place}: {key}")
                except CrbgError as error:
                    problems.append(str(error))
                    entry[key] = None
        return parse(kind, entry, place)
    except CrbgError as error:
        problems.insert(found, str(error))
        return None


def judge(claims: Claims, rows: pd.DataFrame, config: Config) -> list[Judgement]:
    """Apply every rule to the runs of this configuration. In a demonstration, nothing is judged."""
    if config.demonstration:
        unjudged = not_run("nothing is judged in a demonstration")
        return [_of_claim(claim, unjudged) for claim in claims.claims]
    out = [_of_claim(claim, _verdict(claim, rows)) for claim in claims.claims]
    out += [_goal(goal, rows) for goal in claims.goals]
    for name, (label, source) in CONTRASTS.items():
        out += _contrasts(claims.contrast_list(name), rows, label, source)
    return out


def _verdict(claim: Claim, rows: pd.DataFrame) -> Verdict:
    """Apply the rule of a claim, or its reduced rule if the runs that the main rule names do not exist."""
    found = claim.rule.judge(rows) if claim.rule else not_run("no runs in this version")
    return claim.reduced.judge(claim.kind, rows) if claim.reduced and found.absent else found


def _of_claim(claim: Claim, found: Verdict) -> Judgement:
    first = f". Outcome of the earlier rule: {claim.first}" if claim.first else ""
    experiment = next((r.experiment for r in claim.rules if isinstance(r, ArmRule)), "")
    text = (claim.id, claim.source, claim.quote, found.word, found.evidence + first, claim.reading)
    return Judgement(*text, claim.declared, experiment)


def _goal(goal: Goal, rows: pd.DataFrame) -> Judgement:
    """Judge one of our own goals: met if the whole interval reaches the accuracy, met in the mean if the mean does."""
    at = f"{goal.least} % at {100 * (1 - goal.density):g} %"
    name = f"goal {at}, {goal.label}" if goal.label else f"goal {at}"
    quote = f"{goal.arm} reaches {at} sparsity"
    mine = values(rows, goal.experiment, goal.arm, goal.density)
    if mine.empty:
        return Judgement(name, "our goal", quote, "not run", "no runs", experiment=goal.experiment)
    i = stats.t_interval(list(mine.accuracy))
    word = "met" if i.low >= goal.least else "met in the mean" if i.mean >= goal.least else "missed"
    if mine.density_missed.astype(bool).any():
        word = "missed"
    evidence = f"{i.mean:.2f} %{span(i, '.2f')} at {100 * (1 - mine.density.mean()):.1f} % sparsity, n = {i.n}"
    return Judgement(name, "our goal", quote, word, evidence, experiment=goal.experiment)


def _contrasts(declared: Sequence[Contrast], rows: pd.DataFrame, label: str, source: str) -> list[Judgement]:
    """Compare the two arms of each entry of a list, with Holm's correction over the whole list."""
    done: list[tuple[Contrast, stats.Contrast | None]] = []
    for c in declared:
        a, b = (
            values(rows, experiment, arm, c.density)
            for experiment, arm in ((c.experiment, c.a), (c.against or c.experiment, c.b))
        )
        done.append((c, None if a.empty or b.empty else compare(a, b)))
    adjusted = iter(stats.holm([r.p for _, r in done if r is not None], len(declared)))
    return [_contrast(c, r, next(adjusted) if r else 1.0, label, source) for c, r in done]


def _contrast(c: Contrast, r: stats.Contrast | None, p: float, label: str, source: str) -> Judgement:
    data = " (Fashion-MNIST)" if "fashion" in c.experiment else f" ({label})" if label else ""
    name = f"{c.a} - {c.b} at density {c.density}{data}"
    if r is None:
        return Judgement(name, source, name, "not run", "no runs", experiment=c.experiment)
    d = r.difference
    word = "indistinguishable" if not p < 0.05 else f"{c.a if d.mean > 0 else c.b} is better"
    evidence = f"{d.mean:+.2f} points{span(d)}, {r.test}, n = {d.n}, Holm p = {p:.2g}"
    return Judgement(name, source, f"{c.a} against {c.b}", word, evidence, experiment=c.experiment)
