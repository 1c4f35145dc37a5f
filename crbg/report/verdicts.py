"""The verdicts as tables: in Markdown with a summary by chapter, contrasts apart, and as a LaTeX longtable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from crbg.experiments.config import Config
from crbg.report.chapters import ORDER, chapter
from crbg.report.claims import WORDS, Judgement, kind_of
from crbg.report.tables.markup import pipe, tex

DECLARED = "declared before / after the results were known"
WIDTHS = (0.23, 0.12, 0.07, 0.48)  # widths of the LaTeX columns, as fractions of the line
CONTRASTS = """Contrasts compare two arms at one density. Holm's correction is applied to each of the two lists. The
confirmatory contrasts were declared before their runs. The explored contrasts were declared in three lists at different
times, some of them when other results were known, and confirm nothing (`paper/claims.yaml`,
[history](../../docs/history.md)).
"""


def verdict_table(found: Sequence[Judgement], config: Config) -> str:
    """Write the verdicts on claims and goals as Markdown: counts by chapter, then one row for each verdict."""
    head = "**A demonstration: nothing is judged.**\n\n" if config.demonstration else ""
    claims = [v for v in found if not v.contrast]
    return f"{head}{_summary([v for v in claims if not v.goal])}{_rows(claims)}\n"


def contrast_table(found: Sequence[Judgement]) -> str:
    """Write the contrasts as Markdown."""
    return f"{CONTRASTS}\n{_rows([v for v in found if v.contrast])}\n"


def _summary(claims: Sequence[Judgement]) -> str:
    """Count the verdicts on claims by chapter and kind; empty without claims."""
    by: dict[str, Counter[str]] = {title: Counter() for _, title in ORDER}
    for v in claims:
        by.setdefault(chapter(v.experiment)[1], Counter())[kind_of(v.verdict)] += 1
    counts = {title: count for title, count in by.items() if count}
    if not counts:
        return ""
    words = [w for w in WORDS if any(count[w] for count in counts.values())]
    lines = [
        {"chapter": title} | {w: count[w] for w in words} | {"all": count.total()} for title, count in counts.items()
    ]
    whole: Counter[str] = sum(counts.values(), Counter())
    lines.append({"chapter": "all claims"} | {w: whole[w] for w in words} | {"all": whole.total()})
    return f"{pipe(lines)}\n\n"


def _rows(found: Sequence[Judgement]) -> str:
    dated = any(v.declared for v in found)
    return pipe(
        [
            {"claim": v.id, "source": v.source, "quote": v.quote, "verdict": f"**{v.verdict}**"}
            | ({DECLARED: v.declared} if dated else {})
            | {"evidence": v.evidence}
            for v in found
        ]
    )


def verdict_latex(found: Sequence[Judgement]) -> str:
    """Write all verdicts except "not run" as a LaTeX longtable: claim, verdict, time of declaration, evidence."""
    shown = [v for v in found if v.verdict != "not run"]
    lines = [" & ".join(map(tex, (v.id, v.verdict, v.declared, v.measured))) + r" \\" for v in shown]
    widths = "".join(rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in WIDTHS)
    titles = r"claim & verdict & declared & evidence \\"
    head = [rf"\begin{{longtable}}{{{widths}}}", r"\toprule", titles, r"\midrule", r"\endhead"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{longtable}"]) + "\n"
