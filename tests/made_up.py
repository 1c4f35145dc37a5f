"""Synthetic values for tests of the report: accuracies with a known mean and interval, claims, and sweep cells."""

import math

from crbg.report.rules import read_rule

SEEDS = [0, 1, 2, 3]
READINGS = ("binary", "exact", "mean", "half")
CONTRAST = {"experiment": "main", "a": "ours", "b": "quiet", "density": 0.5}
GOOD = {
    "id": "a",
    "source": "s",
    "quoted_from": "our question",
    "quote": "q",
    "kind": "value",
    "reading": "r",
    "rule": None,
}


def around(middle, spread=0.1):
    """Return four accuracies with mean `middle` and a 95 % interval of half-width 1.3 * `spread`."""
    return [middle - spread, middle, middle, middle + spread]


def reach(spread):
    return 3.182446 * math.sqrt(2 * spread**2 / 3) / 2


def knob(weight, mu0):
    return lambda c: c.arm == "knobs" and (c.spec.resolved().weight, c.spec.resolved().mu0) == (weight, mu0)


def kind(penalty, weight):
    return lambda c: c.arm == "kinds" and (c.spec.resolved().penalty, c.spec.resolved().weight) == (penalty, weight)


def ruled(rule, rows):
    """Apply a rule in the format of paper/claims.yaml; return the verdict and the evidence."""
    found = read_rule(rule, "here").judge(rows)
    return found.word, found.evidence
