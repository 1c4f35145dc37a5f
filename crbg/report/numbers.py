"""The numbers of the paper as LaTeX macros, and a check that the paper quotes no other number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from crbg.errors import CrbgError, suggest
from crbg.experiments.config import Config, Experiment
from crbg.report import latency, robustness
from crbg.report.claims import Judgement, kind_of
from crbg.report.names import readable
from crbg.report.records_table import metric_of, specs
from crbg.report.tables import differences, headline, mean_of, tex

HEAD = (
    "% Written by `crbg report`. \\crbgnumber{KEY} gives mean ± half-width of the 95 % interval, KEY.n the number of\n"
    "% seeds, KEY.sparsity the sparsity in %, KEY.bytes the size of the file, KEY.digest the digest of\n"
    "% the spec. latency.DENSITY.BATCH.WAY: how many times faster than WAY a ticket is as a C program.\n"
    "% robust.ARM.MEASURE.WITH: mean over seeds of a value in results/recorded/robustness.csv, in %.\n"
    "\\makeatletter\n"
    "\\newcommand{\\crbgnumber}[1]{\\@ifundefined{crbg@#1}{\\errmessage{unknown number #1}}{\\@nameuse{crbg@#1}}}\n"
)


def collect(rows: pd.DataFrame, verdicts: Sequence[Judgement], config: Config) -> dict[str, str]:
    """Return all numbers by key: EXPERIMENT.ARM[.SETTING].DENSITY, verdict.CLAIM, evidence.CLAIM, counts of runs."""
    out: dict[str, str] = {}
    for e in config.experiments.values():
        if e.role != "tune":
            out |= _of_experiment(rows, e)
    for v in readable(verdicts, config):
        out[f"verdict.{_plain(v.id)}"], out[f"evidence.{_plain(v.id)}"] = v.verdict, v.measured
    runs = rows.drop_duplicates(["digest", "seed"])
    out["runs"], out["runs.tuning"] = str(len(runs)), str(len(runs[runs.role == "tune"]))
    out["verdicts.judged"] = str(sum(v.judged for v in verdicts))
    out["verdicts.observed"] = str(sum(v.verdict == "observed" for v in verdicts))
    out["verdicts.untestable"] = str(sum(kind_of(v.verdict) == "not testable" for v in verdicts))
    out["verdicts.not-run"] = str(sum(v.verdict == "not run" for v in verdicts))
    for row in latency.read().to_dict("records"):
        for way in ("onnxruntime", "dense"):
            out[f"latency.{row['density']:g}.{row['batch']:g}.{way}"] = f"{row[way] / row['program']:.1f}"
    out |= robustness.numbers(robustness.read(config))
    claims = [v for v in verdicts if not (v.goal or v.contrast)]
    out["verdicts.claims"] = str(len(claims))
    out["verdicts.not-run-claims"] = str(sum(v.verdict == "not run" for v in claims))
    return out


def _of_experiment(rows: pd.DataFrame, e: Experiment) -> dict[str, str]:
    """Return the numbers of one experiment by key."""
    out: dict[str, str] = {}
    mine = headline(rows, e.name)
    if mine.empty:
        return out
    compared = differences(rows, e) if e.role == "ablation" else []
    before = rows[(rows.experiment == e.name) & (rows.reading == "untrained") & (rows.part == mine.part.iloc[0])]
    for i, (arm, setting, g) in enumerate(specs(mine)):
        density = "none" if g.asked.isna().all() else f"{g.asked.iloc[0]:g}"
        key = ".".join([e.name, arm, *([_plain(setting)] if setting else []), density])
        out[key] = mean_of(g)
        out[f"{key}.n"], out[f"{key}.digest"] = str(g.seed.nunique()), g.digest.iloc[0]
        out[f"{key}.sparsity"] = f"{100 * (1 - g.density.mean()):.1f}"
        if g["bytes"].notna().all():
            out[f"{key}.bytes"] = f"{g['bytes'].mean():,.0f}".replace(",", r"\,")
        if g.units.notna().all():
            out[f"{key}.cut"] = f"{100 * (1 - g.effective.astype(float).mean()):.0f}"
        if len(drawn := before[before.digest == g.digest.iloc[0]]):
            out[f"{key}.untrained"] = mean_of(drawn)
            out[f"{key}.seconds"] = f"{g.search_seconds.mean():.0f}"
        if compared:
            out[f"{key}.difference"] = compared[i]
    known = mine.constant.dropna()
    if len(known):
        out[f"{e.name}.constant"] = f"{known.iloc[0]:.{metric_of(mine).digits}f}"
    for naive in mine.naive.dropna()[:1]:
        out |= {f"{e.name}.naive.{name}": f"{value:.{metric_of(mine).digits}f}" for name, value in naive.items()}
    return out


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text.replace("≥", "at-least")).strip("-")


def macros(numbers: dict[str, str]) -> str:
    """Return the numbers as LaTeX macros."""
    lines = (f"\\@namedef{{crbg@{key}}}{{{tex(value)}}}\n" for key, value in numbers.items())
    return f"{HEAD}{''.join(lines)}\\makeatother\n"


def check(paper: Path, numbers: dict[str, str], unfinished: Iterable[str] = ()) -> int:
    r"""Check that the paper quotes only known numbers and inputs only files that exist.

    A number is quoted by \\crbgnumber or by the paper's short forms \\num and \\pct. Numbers and files of
    unfinished experiments may be missing; the function returns how many are missing.

    Raises:
        CrbgError: a key is unknown or a file is missing; the message names each with its line and, for a key, the
            nearest known key.
    """
    if not paper.exists():
        return 0
    problems, waiting, waits_for = list[str](), 0, tuple(unfinished)
    for i, line in enumerate(paper.read_text().splitlines(), start=1):
        for what, problem in () if line.lstrip().startswith("%") else _wrong(line, paper.parent, numbers):
            if any(what == e or what.startswith((f"{e}.", f"{e}_")) for e in waits_for):
                waiting += 1
            else:
                problems.append(f"{paper}:{i}: {problem}")
    if problems:
        raise CrbgError("\n".join(problems))
    return waiting


def _wrong(line: str, folder: Path, numbers: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each unknown number or missing file in a line: the key or the file's stem, and the error message."""
    for key in _QUOTED.findall(line):
        if key not in numbers:
            yield key, f"unknown number {key!r}: {suggest(key, numbers)[:200]}"
    for name in _FILES.findall(line):
        wanted = [folder / name, *((folder / name).with_suffix(s) for s in (".tex", ".pdf"))]
        if not any(p.is_file() for p in wanted):
            yield Path(name).stem, f"{name} does not exist; `crbg report` writes it after its experiment has run"


_QUOTED = re.compile(r"\\(?:crbgnumber|num|pct)\{([^}#]+)\}")
_FILES = re.compile(r"\\(?:input|includegraphics)(?:\[[^]]*\])?\{([^}]*)\}")
