"""Generated blocks of README.md and docs/results.md: the text between two markers is written from the records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from crbg import methods
from crbg.errors import CrbgError, suggest
from crbg.experiments.config import Experiment
from crbg.report import tables
from crbg.report.chapters import data_names, label
from crbg.report.claims import WORDS, Judgement, kind_of
from crbg.report.records_table import specs
from crbg.report.tables.markup import percent
from crbg.storage.atomic import write_text

DOCUMENTS = (Path("README.md"), Path("docs/results.md"), Path("docs/how-to/ship-a-ticket.md"))
SMALL = {  # arms of lenet_bytes with files of 2 to 5 kB, with their densities
    "a polished ticket": ("crbg_polished", 0.02),
    "a pruned network with 4-bit weights": ("imp_4_bits", 0.01),
    "a small MLP with 8-bit weights": ("mlp_5_5_8_bits", None),
    "a small CNN with 8-bit weights": ("conv_2kb", None),
}
MARKED = re.compile(r"(<!-- (\w+): written by `crbg report`, do not edit -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
TELLING = (
    "lenet-96-at-45", "up-to-90-minimal-loss", "edge-popup-85-at-50", "eleven-points-over-edge-popup",
    "beats-earlier-methods-98", "lambda-controls-sparsity-decision", "alpha-needs-no-scaling",
    "lenet-structured-88-at-77", "robust-to-width-weights", "lenet-cts-near-imp",
)  # fmt: skip
GUIDE = "docs/how-to/ship-a-ticket.md"
WIDEST = 110  # maximum number of characters of a cell in the README's table of verdicts


def refresh(
    mains: Iterable[Experiment],
    rows: pd.DataFrame,
    verdicts: Sequence[Judgement],
    sized: Sequence[Experiment] = (),
) -> None:
    """Rewrite the generated blocks of all documents that exist; text outside the markers is kept.

    Args:
        mains: the finished main experiments whose accuracies the tables show.
        rows: the tidy table of records.
        verdicts: the judged claims, goals and contrasts.
        sized: the finished experiments that compare networks by the sizes of their files.
    """
    made = blocks(list(mains), rows, verdicts, sized)
    for path in DOCUMENTS:
        if path.exists():
            write_text(path, filled(path.read_text(), made, prefix="../" * (len(path.parts) - 1)))


def filled(text: str, made: dict[str, str], prefix: str = "") -> str:
    """Return a document with each block inserted between its markers.

    Args:
        text: a document with markers.
        made: the blocks by name; their links are relative to the root of the repository.
        prefix: the relative path from the document's folder to the root, such as `../`.

    Raises:
        CrbgError: a marker names a block that does not exist.
    """

    def put(found: re.Match[str]) -> str:
        if found[2] not in made:
            raise CrbgError(f"no generated block is called {found[2]!r}: {suggest(found[2], made)}")
        return found[1] + made[found[2]].replace("](paper/", f"]({prefix}paper/") + found[4]

    return MARKED.sub(put, text)


def blocks(
    mains: Sequence[Experiment],
    rows: pd.DataFrame,
    verdicts: Sequence[Judgement],
    sized: Sequence[Experiment] = (),
) -> dict[str, str]:
    """Return the text of every block, by name."""
    claims = [v for v in verdicts if not (v.goal or v.contrast)]
    return {
        "numbers": "\n".join(tables.readme_table(e, rows) for e in mains),
        "results": _results(rows, claims),
        "verdicts": f"{_counts(claims)}\n\n{_telling(claims)}\n",
        "methods": _methods(),
        "sizes": _sizes(sized, rows),
    }


def _results(rows: pd.DataFrame, claims: Sequence[Judgement]) -> str:
    """Summarise the results in three lines: MNIST, Fashion-MNIST, and the published claims."""
    out = []
    for name, where in (("lenet_curve", "MNIST"), ("lenet_fashion", "Fashion-MNIST")):
        mine = tables.headline(rows, name)
        if mine.empty:
            continue
        at = {arm: _accuracy(mine[(mine.arm == arm) & (mine.asked == 0.05)]) for arm in mine.arm.unique()}
        out.append(
            f"- **{where}, LeNet-300-100, 95 % sparse, no weight trained:** CRBG {at.get('crbg')} %, polished CRBG"
            f" {at.get('crbg_polished')} %, edge-popup {at.get('edge_popup')} %; the trained dense network"
            f" {_accuracy(mine[mine.arm == 'dense_trained'])} %."
        )
    if len(mine := tables.headline(rows, "lenet_bytes")):
        found = {name: _at(mine, arm, density) for name, (arm, density) in SMALL.items()}
        small = [f"{name} {_accuracy(g)} % ({g.bytes.mean():,.0f} bytes)" for name, g in found.items() if len(g)]
        out.append(f"- **MNIST, files of 2 to 5 kB:** {', '.join(small)} ([Ship a ticket]({GUIDE})).")
    return "\n".join([*out, f"- **Published claims:** {_counts(claims)}", ""])


def _at(mine: pd.DataFrame, arm: str, density: float | None) -> pd.DataFrame:
    return mine[(mine.arm == arm) & (mine.asked.isna() if density is None else mine.asked == density)]


def _sizes(sized: Sequence[Experiment], rows: pd.DataFrame) -> str:
    """Tabulate the accuracy of files by kind and size, with columns for each data set."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for e in sized:
        mine = tables.headline(rows, e.name)
        for arm, _, group in specs(mine):
            sparsity = "" if group.asked.isna().all() else percent(group.asked.iloc[0])
            line = lines.setdefault((arm, sparsity), {"network": label(arm, e.labels), "sparsity, %": sparsity})
            data = data_names(group.data.unique())
            line |= {f"bytes, {data}": f"{group.bytes.mean():,.0f}", f"{data}, %": _accuracy(group)}
    return tables.pipe(list(lines.values())) + "\n" if lines else "Not run.\n"


def _accuracy(rows: pd.DataFrame) -> str:
    return tables.interval(list(rows.value)) if len(rows) else "not run"


def _counts(claims: Sequence[Judgement]) -> str:
    """Summarise in one sentence how many published claims got each verdict."""
    words = Counter(kind_of(v.verdict) for v in claims)
    judged = [f"{words[w]} {w}" for w in WORDS if words[w]]
    where = "[all verdicts](paper/tables/verdicts.md), [missing runs](paper/tables/missing.md)"
    return f"{', '.join(judged)}, of {len(claims)} declared rules ({where})."


def _telling(claims: Sequence[Judgement]) -> str:
    """Tabulate the claims in TELLING, which are the most informative about the method."""
    known = {v.id: v for v in claims}
    rows = [known[name] for name in TELLING if name in known]
    return tables.pipe(
        [{"claim": v.quote, "source": v.source, "verdict": v.verdict, "measured": short(v.measured)} for v in rows]
    )


def short(text: str) -> str:
    """If a text is too long for a table cell, cut it at a comma or semicolon outside brackets."""
    if len(text) <= WIDEST:
        return text
    ends = [m.start() for m in re.finditer("[,;]", text[:WIDEST])]
    whole = [end for end in ends if text.count("[", 0, end) == text.count("]", 0, end)]
    return text[: whole[-1] if whole else WIDEST] + " …"


def _methods() -> str:
    """Tabulate the methods from their docstrings and traits."""
    lines = []
    for name in methods.names():
        method = methods.get(name)
        said = " ".join(str(method.__doc__).split("\n\n")[0].split()).rstrip(".")
        traits = asdict(methods.traits(name))
        lines.append({"method": f"`{name}`", "what it does": said.replace("|", "\\|")} | traits)
    return tables.pipe(lines) + "\n"
