"""Published claims and the verdicts on them. The rules that judge the claims are data in paper/claims.yaml.

Some rules were written or changed when results of their runs were known. The field `declared` of each entry says
whether this is so, and docs/history.md lists each changed verdict with both rules. A claim may have two more rules:
`reduced` for runs on a far shorter schedule than the published one, and `second` for a second reading, with tuned
settings or more seeds, that was declared before its runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import Field

from crbg.data.metrics import ACCURACY
from crbg.errors import CrbgError, suggest
from crbg.experiments.config import Config
from crbg.report import stats
from crbg.report.declared import D, Declared, fields_of, parse
from crbg.report.records_table import metric_of, values
from crbg.report.rules import RULES, ArmRule, Reduced, Rule, Verdict, compare, not_run, read_reduced, read_rule, span

CLAIMS = Path("paper/claims.yaml")
MOST = 8  # largest number of confirmatory contrasts
CONTRASTS = {  # lists of contrasts, with their sources; Holm's correction is applied to each list
    "contrasts": "confirmatory contrast",
    "explored": "explored contrast, which confirms nothing",
}
ENOUGH = 0.2  # a search with less than this share of the published steps cannot refute a claim
OURS, CITED = "our question", "cited"  # the values of `quoted_from` that name no text
WORDS = ("exceeded", "reproduced", "inconclusive", "not reproduced", "observed", "not testable", "not run")  # kinds
SHORTER, WAITING = "inconclusive: shorter search", "inconclusive: second reading"


class Budget(Declared):
    """The published length of a search: its number of optimiser steps, and how the source states it."""

    steps: int
    stated: str


class Claim(Declared):
    """A published claim.

    quoted_from: the text in paper/sources.yaml that contains `quote` word for word; or `cited` for a number from a
        source whose text is not at hand, which `quote` summarises; or `our question`, with our own sentence as `quote`.
    reading: how we interpret the claim. rule: None if nothing was run for it. second: the rule of a second reading.
    declared: whether the rule was declared before or after the results of its runs were first seen.
    first: the outcome of an earlier rule. budget: the published length of the search, if it is stated.
    """

    id: str
    source: str
    quoted_from: str
    quote: str
    kind: Literal["value", "order", "existence", "cost"]
    reading: str
    rule: Rule | None
    reduced: Reduced | None = None
    second: Rule | None = None
    declared: Literal["before", "after", ""] = ""
    first: str = ""
    budget: Budget | None = None

    @property
    def rules(self) -> list[Rule]:
        """All rules of the claim: its rule, that of reduced schedules, and that of the second reading."""
        return [r for r in (self.rule, self.reduced.rule if self.reduced else None, self.second) if r is not None]

    @property
    def verbatim(self) -> bool:
        """Whether the quote is a quotation, and not our own words."""
        return self.quoted_from not in (OURS, CITED)


class Contrast(Declared):
    """A comparison of the arms `a` and `b` at one density.

    against: the experiment of `b`, if not `experiment`. label: text that distinguishes it from the same comparison in
    other experiments. declared: as for a claim.
    """

    experiment: str
    a: str
    b: str
    density: float
    against: str = ""
    label: str = ""
    declared: Literal["before", "after"] = "before"


class Goal(Declared):
    """An accuracy in % that we want an arm to reach at a density."""

    experiment: str
    arm: str
    density: float
    least: float
    label: str = ""


class Comparison(Declared):
    """A row of the thesis's comparison table. `constant`: the accuracy of always predicting the most frequent class."""

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
    explored: tuple[Contrast, ...] = ()
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
    were first seen, if the entry states this. experiment: the experiment whose runs were judged. found: the outcome of
    the rule of a claim, with the comparisons on which it depends.
    """

    id: str
    source: str
    quote: str
    verdict: str
    measured: str
    reading: str = ""
    declared: str = ""
    experiment: str = ""
    found: Verdict | None = None

    @property
    def judged(self) -> bool:
        """Whether the rule gave a verdict other than `not run`, `observed` or `not testable`."""
        return kind_of(self.verdict) not in ("not run", "observed", "not testable")

    @property
    def contrast(self) -> bool:
        """Whether this is a declared contrast."""
        return self.source in CONTRASTS.values()

    @property
    def goal(self) -> bool:
        """Whether this is one of our own goals."""
        return self.id.startswith("goal ")

    @property
    def evidence(self) -> str:
        """The measured evidence, followed by our interpretation of the claim."""
        return f"{self.measured}. Interpretation: {self.reading}" if self.reading else self.measured


def kind_of(verdict: str) -> str:
    """Return a verdict without details: "not testable" or "inconclusive" for each verdict that starts so."""
    return next((kind for kind in ("not testable", "inconclusive") if verdict.startswith(kind)), verdict)


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
        CrbgError: entries are malformed; the message names each of them and its place.
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
        if name == "contrasts" and len(entries) > MOST:
            problems.append(f"{place}: {len(entries)} contrasts are declared; the protocol allows at most {MOST}")
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
        for key, read in (
            (("rule", read_rule), ("reduced", read_reduced), ("second", read_rule)) if kind is Claim else ()
        ):
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
    _check_arms(claims, config)
    if config.demonstration:
        unjudged = not_run("nothing is judged in a demonstration")
        return [_of_claim(claim, unjudged) for claim in claims.claims]
    out = [_judged(claim, rows, config) for claim in claims.claims]
    out += [_goal(goal, rows) for goal in claims.goals]
    compared = {name: [(c, _sides(c, rows)) for c in claims.contrast_list(name)] for name in CONTRASTS}
    earlier = {"contrasts": {_runs(sides) for _, sides in compared["explored"]}}
    for name, source in CONTRASTS.items():
        out += _contrasts(compared[name], source, earlier.get(name, ()))
    return out


def _judged(claim: Claim, rows: pd.DataFrame, config: Config) -> Judgement:
    """Judge a claim by its second reading if it is complete, else by its rule, else by its rule for reduced schedules.

    While a second reading is declared and not complete, the first reading cannot refute the claim.
    """
    first = _first_reading(claim, rows)
    if claim.second is None:
        return _of_claim(claim, first)
    second, declared = _within_budget(claim, claim.second, rows), _seeds(claim.second, config)
    if not second.absent and (second.seeds is None or second.seeds >= declared):
        evidence = f"second reading: {second.evidence}. First reading: {first.word}, {first.evidence}"
        return _of_claim(claim, replace(second, evidence=evidence), second=True)
    state = "not run" if second.absent else f"has {second.seeds} of {declared} seeds"
    waits = f"a second reading ({getattr(claim.second, 'experiment', '')}) is declared and {state}"
    if first.word == "not reproduced":
        first = replace(first, word=WAITING, evidence=f"first reading: not reproduced, {first.evidence}")
    return _of_claim(claim, first if first.absent else replace(first, evidence=f"{first.evidence}; {waits}"))


def _check_arms(claims: Claims, config: Config) -> None:
    """Check that the arms of all rules exist, in those experiments that the configuration contains."""
    for claim in claims.claims:
        for rule in claim.rules:
            if isinstance(rule, ArmRule) and rule.experiment in config.experiments:
                arms = {c.arm for c in config.experiment(rule.experiment).cells}
                if rule.arm not in arms:
                    known = suggest(rule.arm, arms)
                    raise CrbgError(f"claim {claim.id}: {rule.experiment} has no arm {rule.arm!r}: {known}")


def _seeds(rule: Rule, config: Config) -> int:
    """Return the number of seeds that the configuration declares for the arm of a rule; 0 without this arm."""
    if not isinstance(rule, ArmRule) or rule.experiment not in config.experiments:
        return 0
    return len({c.seed for c in config.experiment(rule.experiment).cells if c.arm == rule.arm})


def _first_reading(claim: Claim, rows: pd.DataFrame) -> Verdict:
    """Apply the rule of a claim, or its reduced rule if the runs that the main rule names do not exist."""
    found = _within_budget(claim, claim.rule, rows) if claim.rule else not_run("no runs in this version")
    return claim.reduced.judge(claim.kind, rows) if claim.reduced and found.absent else found


def _within_budget(claim: Claim, rule: Rule, rows: pd.DataFrame) -> Verdict:
    """Apply a rule. A search with less than a fifth of the published steps can only confirm the claim."""
    metric = metric_of(rows[rows.experiment == getattr(rule, "experiment", "")])
    if metric is not ACCURACY and not rule.oriented:
        known = ", ".join(name for name, kind in RULES.items() if kind.oriented)
        raise CrbgError(f"claim {claim.id}: the rule {rule.type!r} judges accuracies, not {metric.title}; use {known}")
    found = rule.judge(rows)
    if claim.budget is None or found.absent or not isinstance(rule, ArmRule):
        return found
    mine = rows[(rows.experiment == rule.experiment) & (rows.arm == rule.arm)]
    share = float(mine.steps.max()) / claim.budget.steps
    evidence = f"{found.evidence}; search of {mine.steps.max():.0f} steps, {100 * share:.2g} % of the published"
    evidence += f" {claim.budget.steps} ({claim.budget.stated})"
    short = share < ENOUGH and found.word in ("not reproduced", "inconclusive")
    return replace(found, word=SHORTER if short else found.word, evidence=evidence)


def _of_claim(claim: Claim, found: Verdict, second: bool = False) -> Judgement:
    first = f". Outcome of the earlier rule: {claim.first}" if claim.first else ""
    rules = [claim.second] if second else claim.rules
    experiment = next((r.experiment for r in rules if isinstance(r, ArmRule)), "")
    quote = f"“{claim.quote}”" if claim.verbatim else claim.quote
    text = (claim.id, claim.source, quote, found.word, found.evidence + first, claim.reading)
    return Judgement(*text, "before" if second else claim.declared, experiment, found)


def _goal(goal: Goal, rows: pd.DataFrame) -> Judgement:
    """Judge one of our own goals: met if the lower end of the interval reaches it, met in the mean if the mean does."""
    at = f"{goal.least} % at {100 * (1 - goal.density):g} %"
    name = f"goal {at}, {goal.label}" if goal.label else f"goal {at}"
    quote = f"{goal.arm} reaches {at} sparsity"
    mine = values(rows, goal.experiment, goal.arm, goal.density)
    if mine.empty:
        return Judgement(name, "our goal", quote, "not run", "no runs", experiment=goal.experiment)
    i = stats.t_interval(list(mine.value))
    word = "met" if i.low >= goal.least else "met in the mean" if i.mean >= goal.least else "missed"
    if mine.density_missed.astype(bool).any():
        word = "missed"
    evidence = f"{i.mean:.2f} %{span(i, '.2f')} at {100 * (1 - mine.density.mean()):.1f} % sparsity, n = {i.n}"
    return Judgement(name, "our goal", quote, word, evidence, experiment=goal.experiment)


Sides = tuple[pd.DataFrame, pd.DataFrame]
Runs = frozenset[tuple[str, int]]


def _sides(c: Contrast, rows: pd.DataFrame) -> Sides:
    """Select the test rows of the two arms of a contrast."""
    return values(rows, c.experiment, c.a, c.density), values(rows, c.against or c.experiment, c.b, c.density)


def _runs(sides: Sides) -> Runs:
    """Return the digests and seeds of all runs that a contrast compares."""
    return frozenset((str(d), int(s)) for side in sides for d, s in zip(side.digest, side.seed, strict=True))


def _contrasts(found: Sequence[tuple[Contrast, Sides]], source: str, earlier: Collection[Runs]) -> list[Judgement]:
    """Compare the two arms of each entry of a list, with Holm's correction over the whole list.

    A contrast of the same runs as one in `earlier` is marked, because it is no new evidence.
    """
    results = [None if a.empty or b.empty else compare(a, b) for _, (a, b) in found]
    adjusted = iter(stats.holm([r.p for r in results if r is not None], len(found)))
    return [
        _contrast(c, r, next(adjusted) if r else 1.0, source, _runs(sides) in earlier)
        for (c, sides), r in zip(found, results, strict=True)
    ]


def _contrast(c: Contrast, r: stats.Contrast | None, p: float, source: str, known: bool) -> Judgement:
    name = f"{c.a} - {c.b} at density {c.density}" + (f" ({c.label})" if c.label else "")
    if r is None:
        return Judgement(name, source, name, "not run", "no runs", declared=c.declared, experiment=c.experiment)
    d = r.difference
    word = "indistinguishable" if not p < 0.05 else f"{c.a if d.mean > 0 else c.b} is better"
    evidence = f"{d.mean:+.2f} points{span(d)}, {r.test}, n = {d.n}, Holm p = {p:.2g}"
    quote, declared = f"{c.a} against {c.b}", "after" if known else c.declared
    evidence += "; the same runs as in an explored contrast, so no new evidence" if known else ""
    return Judgement(name, source, quote, word, evidence, declared=declared, experiment=c.experiment)
