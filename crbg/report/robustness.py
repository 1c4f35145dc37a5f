"""Tables of what `crbg robustness` measured: calibration, corrupted images, agreement of seeds, and shared weights."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from crbg.experiments.config import Config
from crbg.experiments.record_store import robustness_file
from crbg.report.figures.labels import Labels, label
from crbg.report.tables.markup import interval, pipe

CAPTION = (
    "Test accuracy in % on the test images as they are and corrupted; expected calibration error in % of the outputs "
    "as they are, and after division by a temperature fitted on validation images; share in % of the test images with "
    "the same prediction for two seeds, mean over pairs of seeds. Mean ± half-width of the 95 % t interval over seeds. "
    "The runs were repeated for these measurements, so single seeds can differ slightly from the recorded runs."
)
OVERLAP = (
    "Masks that two methods find in the same initial weights: Jaccard index in %, and that of independent random masks "
    "with the same density in every layer. Mean ± half-width of the 95 % t interval over seeds."
)


def read(config: Config) -> pd.DataFrame:
    """Return the fresh measurements, or else the recorded ones; the table is empty if there are none."""
    for path in (robustness_file(config), robustness_file(config, recorded=True)):
        if path.exists():
            return pd.read_csv(path, comment="#", dtype={"with": str})
    return pd.DataFrame(columns=["experiment", "arm", "density", "digest", "seed", "measure", "with", "value"])


def table(rows: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Return one row per arm: accuracy on clean and corrupted images, calibration errors, agreement."""
    lines = []
    for arm, mine in rows.groupby("arm", sort=False):
        line = {"network": label(str(arm), labels)}
        for name in mine[mine.measure == "accuracy"]["with"].unique():
            line[name] = interval(list(_values(mine, "accuracy", name)))
        line["calibration error"] = interval(list(_values(mine, "calibration_error", "as found")))
        line["with temperature"] = interval(list(_values(mine, "calibration_error", "fitted")))
        line["agreement"] = f"{_values(mine, 'agreement').mean():.2f}"  # pairs of seeds are no independent samples
        lines.append(line)
    return pd.DataFrame(lines)


def overlap(rows: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Return one row per pair of arms that search in the same weights: the Jaccard index, and that of random masks."""
    lines = []
    for one, other in rows.loc[rows.measure == "jaccard", ["arm", "with"]].drop_duplicates().values:
        pair = rows[(rows.arm == one) & (rows["with"] == other)]
        values = {m: interval(list(100 * _values(pair, m))) for m in ("jaccard", "chance")}
        lines.append({"methods": f"{label(one, labels)} / {label(other, labels)}", **values})
    return pd.DataFrame(lines)


def markdown(rows: pd.DataFrame, labels: Labels) -> str:
    """Return both tables as Markdown."""
    parts = [(CAPTION, table(rows, labels)), (OVERLAP, overlap(rows, labels))]
    return "".join(f"{caption}\n\n{pipe(found.to_dict('records'))}\n\n" for caption, found in parts if len(found))


def numbers(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the key and the text of each mean over seeds."""
    named = rows.assign(**{"with": rows["with"].where(rows.measure != "agreement", "seeds")})
    for key, mine in named.groupby(["arm", "measure", "with"]).value:
        arm, measure, other = map(str, key)
        factor = 100 if measure in ("jaccard", "chance") else 1
        yield f"robust.{arm}.{measure}.{other.replace(' ', '_')}", f"{factor * mine.mean():.1f}"


def _values(rows: pd.DataFrame, measure: str, other: str | None = None) -> pd.Series[float]:
    chosen = rows[rows.measure == measure]
    return (chosen if other is None else chosen[chosen["with"] == other]).value
