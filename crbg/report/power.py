"""The number of seeds that would decide each inconclusive verdict, and the time that the missing seeds would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crbg.experiments import estimates
from crbg.experiments.config import Cell, Config
from crbg.report.claims import SHORTER, WAITING, Claim, Claims, Judgement, kind_of
from crbg.report.rules import ArmRule, Rule
from crbg.report.tables.markup import pipe

HEAD = """The number of seeds per arm that would decide each inconclusive verdict, with a power of 80 %: the smallest n
with n >= ((t(0.975; n - 1) + t(0.8; n - 1)) s / |mean - bound|)^2, where t(q; v) is a quantile of Student's t with v
degrees of freedom. s is the standard deviation of one seed: of a paired difference, or sqrt(s_a^2 + s_b^2) for
independent runs. The means and s are assumed to stay as measured; `outcome` is the verdict that would follow. If a
claim makes several comparisons, n is that of the comparison that decides it. A mean close to its bound needs many
seeds. Hours are for the missing seeds of all compared arms, in one process. Seeds do not help if the search was too
short or not tuned; for such claims, a second reading is declared in `paper/claims.yaml`.
"""
MOST = 1000  # larger numbers of seeds are not printed


def power_table(claims: Claims, found: Sequence[Judgement], config: Config) -> str:
    """Write the table of inconclusive verdicts as Markdown, with an introduction."""
    by_id = {v.id: v for v in found}
    open_claims = [
        (c, by_id[c.id]) for c in claims.claims if c.id in by_id and kind_of(by_id[c.id].verdict) == "inconclusive"
    ]
    lines = [_line(claim, v, config) for claim, v in open_claims]
    return f"{HEAD}\n{pipe(lines)}\n" if lines else f"{HEAD}\nNo verdict is inconclusive.\n"


def _line(claim: Claim, v: Judgement, config: Config) -> dict[str, str]:
    """Return the row of one inconclusive verdict."""
    rule = claim.second if v.experiment == getattr(claim.second, "experiment", None) else claim.rule
    seeds = v.found.seeds if v.found else None
    by_seeds = v.found is not None and v.verdict not in (SHORTER, WAITING)
    needed, word = v.found.decision() if v.found and by_seeds else (None, "")
    hours = _hours(rule, config) if needed and seeds and isinstance(rule, ArmRule) else None
    said = "unknown" if by_seeds else "not a question of seeds"
    if needed:
        said = str(needed) if needed <= MOST else f"> {MOST}"
    return {
        "claim": claim.id,
        "verdict": v.verdict,
        "seeds": str(seeds or ""),
        "seeds needed": said,
        "outcome": word if needed else "",
        "hours": f"{max(0, needed - seeds) * hours:.1f}" if needed and seeds and hours and needed <= MOST else "",
        "second reading": getattr(claim.second, "experiment", "") or "",
    }


def _hours(rule: ArmRule, config: Config) -> float:
    """Estimate the hours that one more seed of all runs of a rule takes."""
    seconds = 0.0
    for name, cells in _cells(rule, config):
        one = list({c.spec.digest(): c for c in cells}.values())
        seconds += sum(
            estimates.estimate_seconds(config, one, estimates.on_gpu(config, config.experiment(name))).values()
        )
    return seconds / 3600


def _cells(rule: Rule, config: Config) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the cells of the arms that a rule compares, by experiment."""
    fields = {name: getattr(rule, name, None) for name in ("arm", "reference", "other", "others", "whole")}
    arms = {a for value in fields.values() for a in ((value,) if isinstance(value, str) else value or ())}
    densities = {*getattr(rule, "densities", ()), getattr(rule, "reference_density", None), None}
    names = [getattr(rule, key, "") for key in ("experiment", "reference_experiment", "among")]
    for name in dict.fromkeys(n for n in names if n in config.experiments):
        cells = [c for c in config.experiment(name).cells if c.arm in arms]
        any_density = not any(d is not None for d in densities)
        yield name, [c for c in cells if any_density or c.spec.density in densities]
