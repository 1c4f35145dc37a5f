"""The verdicts as tables: in Markdown, and as a LaTeX longtable for the paper."""

from __future__ import annotations

from collections.abc import Sequence

from crbg.experiments.config import Config
from crbg.report.claims import Judgement
from crbg.report.tables.markup import pipe, tex

DECLARED = "declared before / after the results were known"
WIDTHS = (0.23, 0.12, 0.07, 0.48)  # widths of the LaTeX columns, as fractions of the line


def verdict_table(found: Sequence[Judgement], config: Config) -> str:
    """Write the verdicts as Markdown."""
    head = "**A demonstration: nothing is judged.**\n\n" if config.demonstration else ""
    dated = any(v.declared for v in found)
    rows = [
        {"claim": v.id, "source": v.source, "quote": v.quote, "verdict": f"**{v.verdict}**"}
        | ({DECLARED: v.declared} if dated else {})
        | {"evidence": v.evidence}
        for v in found
    ]
    return f"{head}{pipe(rows)}\n"


def verdict_latex(found: Sequence[Judgement]) -> str:
    """Write all verdicts except "not run" as a LaTeX longtable: claim, verdict, time of declaration, evidence."""
    shown = [v for v in found if v.verdict != "not run"]
    lines = [" & ".join(map(tex, (v.id, v.verdict, v.declared, v.measured))) + r" \\" for v in shown]
    widths = "".join(rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in WIDTHS)
    titles = r"claim & verdict & declared & evidence \\"
    head = [rf"\begin{{longtable}}{{{widths}}}", r"\toprule", titles, r"\midrule", r"\endhead"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{longtable}"]) + "\n"
