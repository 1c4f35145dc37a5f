"""Rules that judge claims: one small class for each rule type, whose fields are those of an entry in paper/claims.yaml.

To add a rule, write a class with `@register("name")`, typed fields, and a method `judge(rows) -> Verdict`.
"""

from __future__ import annotations

from crbg.errors import CrbgError, suggest
from crbg.report.declared import fields_of, parse
from crbg.report.rules import comparisons, sweeps, tickets, values, widths  # noqa: F401 - registers the rules
from crbg.report.rules.base import RULES, ArmRule, DensityRule, Rule, Verdict, compare, not_run, register, span
from crbg.report.rules.reduced import Reduced, Schedule, split

__all__ = [
    "RULES",
    "ArmRule",
    "DensityRule",
    "Reduced",
    "Rule",
    "Schedule",
    "Verdict",
    "compare",
    "not_run",
    "read_reduced",
    "read_rule",
    "register",
    "span",
]


def read_rule(raw: object, place: str) -> Rule:
    """Read a rule by its `type`.

    Raises:
        CrbgError: the type is unknown, or fields are missing, unknown or of the wrong type.
    """
    fields = fields_of(raw, place)
    name = str(fields.pop("type", None))
    if name not in RULES:
        raise CrbgError(f"{place}: unknown rule {name!r}: {suggest(name, RULES)}")
    return parse(RULES[name], fields, f"{place}: rule {name!r}")


def read_reduced(raw: object, place: str) -> Reduced:
    """Read a rule together with the reduced schedule of the runs that it judges.

    Raises:
        CrbgError: as for `read_rule`, or the rule does not judge runs.
    """
    schedule, rest = split(fields_of(raw, place))
    rule = read_rule(rest, place)
    if not isinstance(rule, ArmRule):
        raise CrbgError(f"{place}: rule {rule.type!r} judges no runs, so it has no reduced schedule")
    return Reduced(rule=rule, schedule=parse(Schedule, schedule, place))
