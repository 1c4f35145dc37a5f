"""Tables in Markdown and LaTeX."""

from crbg.report.tables.experiment import (
    CONTROLS,
    ablation_table,
    best_part,
    copies,
    differences,
    headline,
    latex,
    main_table,
    markdown,
    origin,
)
from crbg.report.tables.markup import booktabs, interval, mean_of, pipe, tex
from crbg.report.tables.summary import best_tickets, comparison, readme_table, short_latex
from crbg.report.tables.tuning import tuning_table, tuning_trials

__all__ = [
    "CONTROLS",
    "ablation_table",
    "best_part",
    "best_tickets",
    "booktabs",
    "comparison",
    "copies",
    "differences",
    "headline",
    "interval",
    "latex",
    "main_table",
    "markdown",
    "mean_of",
    "origin",
    "pipe",
    "readme_table",
    "short_latex",
    "tex",
    "tuning_table",
    "tuning_trials",
]
