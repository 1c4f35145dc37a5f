"""Records -> tables, figures, verdicts, the paper's numbers and one page."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from crbg.experiments import record_store
from crbg.experiments.config import Config, Experiment
from crbg.report import anatomy, compare, depth, figures, numbers, page, tables, winners
from crbg.report.claims import PUBLISHED, judge, read_claims, verdict_latex, verdict_table
from crbg.report.records_table import tidy, unfinished
from crbg.storage.atomic import write_text

COMPARISON = "The thesis's comparison table for LeNet on MNIST, measured again: test accuracy, mean ± half of the 95 % t interval over n seeds."


def build(
    config: Config,
    only: str | None = None,
    page_copy: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Write everything under the configuration's paper folder, and say in lines what was written and what is missing.

    With `only`, just the table and the figure of one experiment. `tell` gets each line as soon as what it names is
    there.
    """
    out, sections = list[str](), list[page.Section]()

    def say(line: str) -> None:
        out.append(line)
        tell(line)

    rows, folder = tidy(config), config.paper
    claims = read_claims()
    for e in [config.experiment(only)] if only else config.experiments.values():
        if e.role == "tune" or rows[(rows.experiment == e.name) & (rows.reading == "binary")].empty:
            continue
        table = tables.ablation_table(rows, e) if e.role == "ablation" else tables.main_table(rows, e.name)
        write_text(folder / "tables" / f"{e.name}.md", tables.markdown(table, e, config, rows))
        write_text(folder / "tables" / f"{e.name}.tex", tables.latex(table))
        drawn = figures.draw(rows, e, folder / "figures" / e.name, config.demonstration, _published(claims, e, config))
        sections.append(page.Section(e, table, drawn, tables.origin(rows, e)))
        say(f"{folder / 'tables' / (e.name + '.md')}, {drawn}.png: {e.about}")
    if only:
        return out
    mains = [
        s.experiment
        for s in sections
        if s.experiment.role == "main" and s.experiment.view in ("curve", "methods", "winners")
    ]
    for s in sections:
        s.beside.update(_compared(s.experiment, rows, config))
        for caption, table in s.beside.items():
            path = folder / "tables" / f"{s.experiment.name}_{caption.split()[0]}"
            write_text(
                path.with_suffix(".md"),
                f"{s.experiment.about}: {caption}.\n\n{tables.pipe(table.to_dict('records'))}\n",
            )
            write_text(path.with_suffix(".tex"), tables.booktabs(table))
    for e in mains:
        write_text(folder / "tables" / f"{e.name}_short.tex", tables.short_latex(e, rows))
    beside = tables.comparison([] if config.demonstration else claims.get("comparison", []), rows)
    if len(beside):
        write_text(folder / "tables" / "comparison.md", f"{COMPARISON}\n\n{tables.pipe(beside.to_dict('records'))}\n")
        write_text(folder / "tables" / "comparison.tex", tables.booktabs(beside))
    pictures = _insides(config, folder)
    write_text(config.results / "results.csv", rows.to_csv(index=False))
    write_text(folder / "tables" / "tuning.md", tables.tuning_table(rows))
    verdicts = judge(claims, rows, config)
    write_text(folder / "tables" / "verdicts.md", verdict_table(verdicts, config))
    write_text(folder / "tables" / "verdicts.tex", verdict_latex(verdicts))
    known, missing = numbers.collect(rows, verdicts, config), unfinished(config, rows)
    write_text(folder / "numbers.tex", numbers.macros(known))
    whole = page.html(config, sections, verdicts, rows, pictures, beside, missing)
    for path in (folder / "report.html", *([page_copy] if page_copy else [])):
        write_text(path, whole)
    say(f"{config.results / 'results.csv'}: {len(rows)} rows")
    say(f"{folder / 'tables' / 'verdicts.md'}: {len(verdicts)} claims, goals and contrasts")
    say(f"{folder / 'report.html'}: everything on one page")
    if not config.demonstration:
        _into_readme([e for e in mains if e.name not in missing], rows)
        waiting = numbers.check(folder / "main.tex", known, missing)
        say(
            _typeset(folder)
            if not waiting
            else f"{folder / 'main.tex'}: {waiting} places wait for experiments that are not finished"
        )
    for name, count in missing.items():
        say(f"{name}: {count} runs are missing; `crbg run {name}` does them")
    return out


def _compared(e: Experiment, rows: pd.DataFrame, config: Config) -> dict[str, pd.DataFrame]:
    """Make the tables that stand beside the one of an experiment that compares methods; their names begin their captions."""
    if e.view == "winners":
        found = winners.measured(config, e)
        return (
            {"objectives of the tickets as they were drawn, means over seeds": winners.objectives(found)}
            if len(found)
            else {}
        )
    if e.view != "methods":
        return {}
    seen = f"properties of the methods and what was seen of them at density {compare.shown_at(e):g}"
    several = len({c.spec.density for c in e.cells} - {None}) > 1
    return {seen: compare.properties(rows, e, config)} | (
        {"sparsity at equal accuracy": compare.equal_accuracy(rows, e)} if several else {}
    )


def _published(claims: Mapping[str, Any], experiment: Experiment, config: Config) -> dict[str, Any]:
    """Find what was published for an experiment's own figure: points (density, accuracy, source) and the width sweep."""
    if config.demonstration:
        return {}
    declared = [(c, rule) for c in claims["claims"] for rule in (c["rule"], c.get("reduced")) if rule]
    rules = [(c, rule) for c, rule in declared if rule.get("experiment") == experiment.name]
    found: dict[str, Any] = {
        "points": [(r["at"], r["published"], c["source"].split(",")[0]) for c, r in rules if "at" in r]
    }
    known = yaml.safe_load(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    if any(r["type"] == "width" for _, r in rules) or experiment.name in known.get("winners", {}):
        found |= known
    return found


def _insides(config: Config, folder: Path) -> list[page.Picture]:
    """Draw the anatomy of tickets, the course of mu under each penalty, and deep networks layer by layer."""
    out = []
    for a in anatomy.tickets(config):
        path = folder / "figures" / f"ticket_{a.cell.spec.slug()}_seed{a.cell.seed}"
        accuracy = a.record.get("validation", {}).get("readings", {}).get("binary", {}).get("accuracy")
        caption = f"{a.cell.experiment}, {a.cell.arm}: {a.cell.spec.slug()} seed {a.cell.seed}"
        caption += (
            f", density {a.record['density']:.4f}, validation accuracy {accuracy:.2f} %" if accuracy is not None else ""
        )
        out.append(page.Picture(a.cell.experiment, caption, figures.inside(a, path), ticket=True))
    for e in config.experiments.values():
        if e.view == "penalties" and (picked := _one_seed(config, e)):
            path = folder / "figures" / f"{e.name}_histograms"
            out.append(
                page.Picture(
                    e.name, "Gates under each penalty, one run each", figures.histograms(picked, path, e.labels)
                )
            )
        if e.view == "winners" and len(worth := winners.measured(config, e)):
            path = folder / "figures" / f"{e.name}_objectives"
            drawn = figures.by_objective(worth, winners.TITLES, path, config.demonstration, e.labels)
            out.append(
                page.Picture(e.name, "What tickets are worth as they were drawn, by objective, lower is better", drawn)
            )
        if found := depth.layers(config, e) if e.role != "tune" else []:
            path = folder / "figures" / f"{e.name}_layers"
            out.append(
                page.Picture(e.name, "Sparsity by layer", figures.by_depth(found, path, config.demonstration, e.labels))
            )
            for f in (f for f in found if f.heads is not None):
                path = folder / "figures" / f"{e.name}_heads_{f.arm}_{f.asked:g}"
                drawn = figures.by_head(f, path, config.demonstration, e.labels)
                out.append(page.Picture(e.name, f"Sparsity by head, {f.arm} at density {f.asked:g}", drawn))
    return out


def _one_seed(config: Config, e: Experiment) -> dict[str, Mapping[str, Any]]:
    """Take one record for each penalty of an experiment's first arm: the middle lambda, the first seed."""
    first = [c for c in e.cells if c.arm == e.cells[0].arm and c.seed == e.cells[0].seed]
    weights = sorted({c.spec.resolved().weight for c in first})
    found = {}
    for c in first:
        run = (
            record_store.find(config, c.spec, c.seed)
            if c.spec.resolved().weight == weights[len(weights) // 2]
            else None
        )
        if run and "anatomy" in run["record"]:
            found[c.spec.resolved().penalty] = run["record"]
    return found


def _typeset(folder: Path) -> str:
    """Make paper.pdf where LaTeX is installed, and say in one line what happened."""
    paper = folder / "main.tex"
    if not paper.exists():
        return f"{paper} is not there, so no PDF"
    if shutil.which("latexmk") is None:
        return f"{folder / 'paper.pdf'}: not made, LaTeX is not installed (Debian: apt install latexmk texlive-latex-extra)"
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-jobname=paper", paper.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return f"{folder / 'paper.pdf'}: the paper"
    wrong = next((line for line in done.stdout.splitlines() if line.startswith("!")), "see its log")
    return f"{folder / 'paper.pdf'}: LaTeX failed: {wrong}"


def _into_readme(mains: list[Experiment], rows: pd.DataFrame, path: Path = Path("README.md")) -> None:
    """Replace the numbers between the markers of the README, where there are any."""
    first, last = "<!-- numbers: written by `crbg report`, do not edit -->\n", "<!-- end of numbers -->"
    text = path.read_text() if path.exists() else ""
    if first not in text or last not in text:
        return
    before, rest = text.split(first, 1)
    _, after = rest.split(last, 1)
    shown = [tables.readme_table(e, rows) for e in mains]
    write_text(path, before + first + "\n".join(shown) + last + after)


def brief(config: Config, experiments: Iterable[Experiment]) -> str:
    """Say in ten lines what happened: what was run, the best ticket of each method, and which files to open."""
    experiments = list(experiments)
    rows = tidy(config)
    rows = rows[rows.experiment.isin([e.name for e in experiments])]
    counts = rows.drop_duplicates(["experiment", "digest", "seed"]).experiment.value_counts(sort=False)
    many = (
        f"{counts.sum()} of {len(counts)} experiments"
        if len(counts) > 12
        else ", ".join(f"{n} of {e}" for e, n in counts.items())
    )
    out = [f"Runs: {many or 'none'}."]
    known = [e for e in experiments if e.role != "tune" and (rows.experiment == e.name).any()]
    strong = page.key(e for e in known if e.view != "winners")
    winning = page.key(e for e in known if e.view == "winners")
    for e, kind in ((strong, "untrained weights"), (winning, "weights trained under the mask")):
        best = tables.best_tickets(rows, e.name) if e else pd.DataFrame()
        if e and len(best):
            part = tables.best_part(rows[rows.experiment == e.name])
            out.append(
                f"{e.name}, best ticket of each method at {100 * (1 - best.density[0]):g} % sparsity, {kind}, {part} accuracy:"
            )
            told = [
                f"{page.label(arm, e.labels)} {accuracy:.1f} %"
                for arm, accuracy in zip(best.arm, best.accuracy, strict=True)
            ]
            step = max(3, math.ceil(len(told) / (3 if e is strong else 2)))
            out += [
                "  " + "   ".join(f"{t:<34s}" for t in told[i : i + step]).rstrip() for i in range(0, len(told), step)
            ]
    if config.demonstration:
        out.append("DEMONSTRATION on 1 797 toy digits: it shows that the pipeline works and is evidence for no claim.")
    whole, shown = config.paper / "report.html", page.key(known)
    picture = config.paper / "figures" / f"{shown.name}.png" if shown else None
    out.append(f"Open {whole} (everything on one page)." if whole.exists() else f"`crbg report` writes {whole}.")
    if picture and picture.exists():
        out.append(f"The picture: {picture}")
    return "\n".join(out)
