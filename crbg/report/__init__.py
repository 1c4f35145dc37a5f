"""Records -> tables, figures, numbers, verdicts and one HTML page. Reads result files only and never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from crbg.config import Config, Experiment
from crbg.files import write_text
from crbg.report import figures, page, tables
from crbg.report.claims import judge, read_claims, verdict_table
from crbg.report.tidy import tidy, unfinished


def build(config: Config, only: str | None = None, page_copy: Path | None = None) -> list[str]:
    """Write everything under the configuration's paper folder, and say in lines what was written and what is missing.

    With `only`, just the table and the figure of one main experiment.
    """
    rows, folder, out, sections = tidy(config), config.paper, list[str](), list[page.Section]()
    claims = read_claims()
    for e in [config.experiment(only)] if only else config.experiments.values():
        if e.role == "tune" or rows[(rows.experiment == e.name) & (rows.reading == "binary")].empty:
            continue
        if e.role == "ablation":
            table = tables.ablation_table(rows, e)
            write_text(folder / "tables" / f"{e.name}.md", tables.markdown(table, e, config, rows))
            out.append(f"{folder / 'tables' / (e.name + '.md')}: {e.about}")
            continue
        table = tables.main_table(rows, e.name)
        write_text(folder / "tables" / f"{e.name}.md", tables.markdown(table, e, config, rows))
        write_text(folder / "tables" / f"{e.name}.tex", tables.latex(table))
        drawn = figures.curve(rows, e, folder / "figures" / e.name, config.demonstration, _published(claims, e, config))
        sections.append((e, table, drawn))
        out.append(f"{folder / 'tables' / (e.name + '.md')}, {drawn}.png: {e.about}")
    if only:
        return out
    write_text(config.results / "results.csv", rows.to_csv(index=False))
    tuned = tables.tuning_table(rows)
    write_text(folder / "tables" / "tuning.md", tuned)
    verdicts = judge(claims, rows, config)
    write_text(folder / "tables" / "verdicts.md", verdict_table(verdicts, config))
    write_text(folder / "numbers.tex", tables.numbers(rows))
    whole = page.html(config, sections, verdicts, rows, tuned)
    for path in (folder / "report.html", *([page_copy] if page_copy else [])):
        write_text(path, whole)
    if not config.demonstration:
        _into_readme(sections, rows)
    out.append(f"{config.results / 'results.csv'}: {len(rows)} rows")
    out.append(f"{folder / 'tables' / 'verdicts.md'}: {len(verdicts)} claims and contrasts")
    out.append(f"{folder / 'report.html'}: everything on one page")
    for name, count in unfinished(config).items():
        out.append(f"{name}: {count} runs are missing; `crbg run {name}` does them")
    return out


def _published(claims: Mapping[str, Any], experiment: Experiment, config: Config) -> list[tuple[float, float, str]]:
    """Find what was published for an experiment's own curve: (density, accuracy, source)."""
    rules = [(c, c["rule"]) for c in claims["claims"] if c["rule"] and c["rule"].get("experiment") == experiment.name]
    found = [(r["at"], r["published"], c["source"].split(",")[0]) for c, r in rules if "at" in r]
    return [] if config.demonstration else found


def _into_readme(sections: list[page.Section], rows: pd.DataFrame, path: Path = Path("README.md")) -> None:
    """Replace the numbers between the markers of the README, where there are any."""
    first, last = "<!-- numbers: written by `crbg report`, do not edit -->\n", "<!-- end of numbers -->"
    text = path.read_text() if path.exists() else ""
    if first not in text or last not in text:
        return
    before, rest = text.split(first, 1)
    _, after = rest.split(last, 1)
    shown = [tables.readme_table(e, rows) for e, _, _ in sections]
    write_text(path, before + first + "\n".join(shown) + last + after)


def brief(config: Config) -> str:
    """Say what was run, the headline accuracies, and which files to open."""
    rows = tidy(config)
    runs = rows.drop_duplicates(["digest", "seed"])
    done = ", ".join(f"{n} of {e}" for e, n in runs.experiment.value_counts(sort=False).items())
    out = [f"Runs: {done or 'none'}."]
    for e in config.experiments.values():
        if e.role == "main" and not rows[rows.experiment == e.name].empty:
            table = tables.main_table(rows, e.name)[["arm", "sparsity %", "binary %", "reinit %", "n"]]
            out += ["", f"{e.name}: {e.about} (binary masks)", tabulate(table.to_dict("records"), headers="keys", disable_numparse=True)]
    if config.demonstration:
        out += ["", "DEMONSTRATION on 1 797 toy digits: it shows that the pipeline works and is evidence for no claim."]
    out += ["", f"Open {config.paper / 'report.html'} (everything on one page) and {config.paper / 'figures'}/*.png."]
    return "\n".join(out)
