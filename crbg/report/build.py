"""Build the whole report from the records: tables, figures, verdicts, the numbers of the paper, and one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from crbg.experiments.config import Config, Experiment
from crbg.report import (
    compare,
    documents,
    figures,
    latency,
    names,
    numbers,
    page,
    paper,
    paper_tables,
    pictures,
    robustness,
    tables,
    winners,
)
from crbg.report.claims import Claims, judge, read_claims
from crbg.report.missing import missing_table
from crbg.report.power import power_table
from crbg.report.published import of_experiment
from crbg.report.records_table import tidy, unfinished
from crbg.report.verdicts import contrast_table, verdict_latex, verdict_table
from crbg.storage.atomic import write_text

COMPARISON = (
    "The thesis's comparison table for LeNet on MNIST, measured again: "
    "test accuracy, mean ± half-width of the 95 % t interval over n seeds."
)
SHORT = ("curve", "methods", "winners")  # main experiments with these views have a short table in the paper


def build(
    config: Config,
    only: str | None = None,
    page_copy: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Write all tables, figures, numbers and the page into the configuration's paper folder.

    Args:
        config: the configuration whose records are reported.
        only: write just the table and the figure of this experiment.
        page_copy: path of a second copy of the page.
        tell: called with each returned line as soon as the files that it names exist.

    Returns:
        One line for each written file or group of files, and one for each experiment with missing runs.
    """
    out = list[str]()

    def say(line: str) -> None:
        out.append(line)
        tell(line)

    rows, folder, claims = tidy(config), config.paper, read_claims()
    sections = list[page.Section]()
    for e in [config.experiment(only)] if only else config.experiments.values():
        if e.role != "tune" and not rows[(rows.experiment == e.name) & (rows.reading == "binary")].empty:
            sections.append(_section(e, rows, claims, config))
            say(f"{folder / 'tables' / (e.name + '.md')}, {sections[-1].figure}.png: {e.about}")
    if only:
        return out
    for s in sections:
        _beside(s, rows, config)
    mains = [s.experiment for s in sections if s.experiment.role == "main" and s.experiment.view in SHORT]
    for e in mains:
        write_text(folder / "tables" / f"{e.name}_short.tex", tables.short_latex(e, rows))
    content = page.Content(
        rows,
        sections,
        judge(claims, rows, config),
        pictures.draw_all(config, folder / "figures"),
        _comparison(claims, rows, config),
        unfinished(config, rows),
    )
    known = numbers.collect(rows, content.verdicts, config)
    _write(config, content, known, page_copy, say)
    if not config.demonstration:
        write_text(folder / "tables" / "contrasts.md", contrast_table(content.verdicts))
        write_text(folder / "tables" / "power.md", power_table(claims, content.verdicts, config))
        write_text(folder / "tables" / "missing.md", missing_table(content.verdicts, config))
        for name, text in paper_tables.all_tables(rows, names.readable(content.verdicts, config), config):
            write_text(folder / "tables" / f"{name}.tex", text)
        figures.method(folder / "figures" / "method")
        if len(times := latency.read()):
            figures.latency(times, folder / "figures" / "latency")
        if len(found := robustness.read(config)):
            _robustness(found, config)
    if not config.demonstration:
        done = [s.experiment for s in sections if s.experiment.name not in content.missing]
        sized = [e for e in done if e.view == "bytes"]
        if config.paper == Path("paper") and config.files == ("config.yaml",):
            documents.refresh([e for e in mains if e in done], rows, content.verdicts, sized)
        else:
            say(f"{', '.join(map(str, documents.DOCUMENTS))}: not rewritten, as this is another configuration")
        waiting = numbers.check(folder / "main.tex", known, content.missing)
        unready = f"{folder / 'main.tex'}: not typeset; {waiting} numbers or files need unfinished experiments"
        say(unready if waiting else paper.typeset(folder))
    for name, runs in content.missing.items():
        say(f"{name}: {len(runs)} runs are missing; `crbg run {name}` runs them")
    return out


def _section(e: Experiment, rows: pd.DataFrame, claims: Claims, config: Config) -> page.Section:
    """Write the table and the figure of one experiment."""
    table = tables.ablation_table(rows, e) if e.role == "ablation" else tables.main_table(rows, e.name)
    path = config.paper / "tables" / e.name
    write_text(path.with_name(f"{e.name}.md"), tables.markdown(table, e, config, rows))
    write_text(path.with_name(f"{e.name}.tex"), tables.latex(table))
    published = of_experiment(claims, e, config)
    drawn = figures.draw(rows, e, config.paper / "figures" / e.name, published, config.demonstration)
    return page.Section(e, table, drawn, tables.origin(rows, e))


def _beside(s: page.Section, rows: pd.DataFrame, config: Config) -> None:
    """Write the additional tables of an experiment that compares methods."""
    s.beside.update(_compared(s.experiment, rows, config))
    for caption, table in s.beside.items():
        name = f"{s.experiment.name}_{caption.split()[0]}"
        body = tables.pipe(table.to_dict("records"))
        write_text(config.paper / "tables" / f"{name}.md", f"{s.experiment.about}: {caption}.\n\n{body}\n")
        write_text(config.paper / "tables" / f"{name}.tex", tables.booktabs(table))


def _compared(e: Experiment, rows: pd.DataFrame, config: Config) -> dict[str, pd.DataFrame]:
    """Return an experiment's additional tables, keyed by caption; the first word of a caption names the file."""
    if e.view == "winners":
        found = winners.measured(config, e)
        caption = "objectives of the tickets before training, means over seeds"
        return {caption: winners.objectives(found)} if len(found) else {}
    if e.view != "methods":
        return {}
    seen = f"properties of the methods, and measurements at density {compare.shown_at(e):g}"
    out = {seen: compare.properties(rows, e, config)}
    if len({c.spec.density for c in e.cells} - {None}) > 1:
        out["sparsity at equal accuracy"] = compare.equal_accuracy(rows, e)
    return out


def _robustness(found: pd.DataFrame, config: Config) -> None:
    """Write the tables and the figure of what `crbg robustness` measured."""
    folder, labels = config.paper / "tables", config.labels
    write_text(folder / "robustness.md", robustness.markdown(found, labels))
    write_text(folder / "robustness.tex", tables.booktabs(robustness.table(found, labels)))
    figures.robustness(found, config.paper / "figures" / "robustness", labels)


def _comparison(claims: Claims, rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Write the thesis's comparison table with our measurements; the table is empty for a demonstration."""
    table = tables.comparison(() if config.demonstration else claims.comparison, rows)
    if len(table):
        path = config.paper / "tables" / "comparison"
        write_text(path.with_suffix(".md"), f"{COMPARISON}\n\n{tables.pipe(table.to_dict('records'))}\n")
        short = table.replace(r" of the units \(.*", " of units*", regex=True)
        write_text(path.with_suffix(".tex"), tables.booktabs(short))
    return table


def _write(
    config: Config, content: page.Content, known: dict[str, str], page_copy: Path | None, say: Callable[[str], None]
) -> None:
    """Write the files that cover all experiments: results.csv, tuning trials, verdicts, numbers and the page."""
    folder, results, rows = config.paper, config.results / "results.csv", content.rows
    write_text(results, rows.to_csv(index=False))
    write_text(folder / "tables" / "tuning.md", tables.tuning_table(rows))
    write_text(folder / "tables" / "verdicts.md", verdict_table(content.verdicts, config))
    write_text(folder / "tables" / "verdicts.tex", verdict_latex(names.readable(content.verdicts, config, ids=True)))
    write_text(folder / "numbers.tex", numbers.macros(known))
    whole = page.html(config, content)
    paths: Sequence[Path] = (folder / "report.html", *([page_copy] if page_copy else []))
    for path in paths:
        write_text(path, whole)
    say(f"{results}: {len(rows)} rows")
    say(f"{folder / 'tables' / 'verdicts.md'}: {len(content.verdicts)} claims, goals and contrasts")
    say(f"{folder / 'report.html'}: everything on one page")
