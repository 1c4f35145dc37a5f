"""Measure what accuracy on clean images does not show: calibration, corrupted images, agreement and shared weights.

The result is one value per row, in the columns of `COLUMNS`:

- `accuracy`: accuracy in per cent on the test images as they are (`with` is "clean"), and with each corruption;
- `calibration_error`: in per cent, of the logits as they are (`with` is "as found") and divided by the temperature that
  is best on the validation images (`with` is "fitted");
- `agreement`: share of the test images in per cent for which two seeds of an arm predict the same class; `with` is the
  other seed;
- `jaccard` and `chance`: overlap of the masks of two arms with the same seed, and that of independent random masks with
  the same densities (`crbg.masks.overlap`); `with` is the other arm.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from crbg.console import Progress
from crbg.data.corruptions import CORRUPTIONS, corrupted
from crbg.data.images import ImagePart
from crbg.data.parts import Part
from crbg.errors import CrbgError
from crbg.experiments.config import Cell, Config
from crbg.experiments.record import Record
from crbg.experiments.record_store import run_folder
from crbg.experiments.spec import Spec
from crbg.masks.mask import Mask
from crbg.masks.overlap import chance_jaccard, jaccard
from crbg.measure import eval_mode
from crbg.measure.calibration import calibration_error, fitted_temperature
from crbg.rng import LAWS
from crbg.runs.artifacts import rebuild
from crbg.runs.lines import title
from crbg.runs.open_test_set import check_selected
from crbg.runs.provenance import cpu_name, revision
from crbg.runs.setup import Workspace
from crbg.storage.atomic import read_json
from crbg.ticket import Ticket

COLUMNS = ("experiment", "arm", "density", "digest", "seed", "measure", "with", "value")
Row = tuple[str, str, float | None, str, int, str, str, float]


@dataclass(frozen=True)
class _Measured:
    """What is kept of a run to compare it with other runs."""

    cell: Cell
    predicted: Tensor
    mask: Mask | None  # of a strong ticket


def robustness(config: Config, cells: Sequence[Cell], workspace: Workspace) -> list[Row]:
    """Measure finished runs on the test images, as they are and corrupted.

    Raises:
        CrbgError: a run is missing or has no ticket, or its spec was not selected for the test set.
    """
    for c in cells:
        if workspace.selected is not None:
            check_selected(c.spec, workspace.selected)
        if not (run_folder(config, c.spec, c.seed) / "gates.safetensors").exists():
            raise CrbgError(
                f"{title(c)}: its network is not in {config.results}, which contains records only; run "
                f"`crbg run {c.experiment} --set reuse=never results=FOLDER`, and name the same FOLDER here"
            )
    rows, measured, parts = list[Row](), list[_Measured](), dict[Hashable, dict[str, Part]]()
    with Progress(len(cells)) as progress:
        for c in cells:
            key = (c.spec.data, c.spec.split, c.spec.size)
            if key not in parts:
                parts[key] = _parts(workspace, c.spec)
            if found := _measure(config, c, workspace, parts[key], rows):
                measured.append(found)
            progress.finish(title(c))
    rows.extend(_compared(measured))
    return rows


def text(rows: Sequence[Row]) -> str:
    """Return rows as CSV: a comment with processor and revision, and a header."""
    out = io.StringIO()
    out.write(f"# {cpu_name()}, torch {torch.__version__}, revision {revision()}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for *key, value in rows:
        writer.writerow([*key, round(value, 4)])
    return out.getvalue()


def _parts(workspace: Workspace, spec: Spec) -> dict[str, Part]:
    """Return the validation images, the clean test images, and the test images with each corruption.

    Raises:
        CrbgError: the data set has no images.
    """
    data = workspace.data(spec.data, split=spec.split).sized(spec.size)
    if not isinstance(data.test, ImagePart):
        raise CrbgError(f"corruptions are defined for images, and {spec.data} has none; choose an experiment on images")
    changed = {name: corrupted(data.test, name) for name in CORRUPTIONS}
    return {"validation": data.validation, "clean": data.test, **changed}


def _measure(
    config: Config, c: Cell, workspace: Workspace, parts: Mapping[str, Part], rows: list[Row]
) -> _Measured | None:
    """Append the rows of one run; return None if its search collapsed."""
    where = run_folder(config, c.spec, c.seed)
    if not Record.from_json(read_json(where / "record.json"), str(where)).ok:
        return None
    model = rebuild(where).to(workspace.device)

    def add(measure: str, other: str, value: float) -> None:
        rows.append((*_name(c), measure, other, value))

    logits, labels = {name: _logits(model, part) for name, part in parts.items()}, parts["clean"].y
    for name in ("clean", *CORRUPTIONS):
        add("accuracy", name, 100 * float((logits[name].argmax(1) == labels).double().mean()))
    clean = logits["clean"]
    temperature = fitted_temperature(logits["validation"], parts["validation"].y)
    add("calibration_error", "as found", calibration_error(clean, labels))
    add("calibration_error", "fitted", calibration_error(clean / temperature, labels))
    ticket = where / "ticket.safetensors"
    same_weights = c.spec.init in LAWS and ticket.exists()
    return _Measured(c, clean.argmax(1), Ticket.load(ticket).mask if same_weights else None)


@torch.no_grad()
def _logits(model: nn.Module, part: Part) -> Tensor:
    with eval_mode(model):
        return torch.cat([model(x) for x, _ in part.batches()]).float()


def _compared(measured: Sequence[_Measured]) -> Iterator[Row]:
    """Yield the rows that compare two runs: seeds of one arm, or arms that search in the same weights."""
    for a, b in combinations(measured, 2):
        one, other = a.cell, b.cell
        if one.spec == other.spec:
            same = 100 * float((a.predicted == b.predicted).double().mean())
            yield (*_name(one), "agreement", str(other.seed), same)
        elif a.mask and b.mask and _same_draw(one, other):
            yield (*_name(one), "jaccard", other.arm, jaccard(a.mask, b.mask))
            yield (*_name(one), "chance", other.arm, chance_jaccard(a.mask, b.mask))


def _name(c: Cell) -> tuple[str, str, float | None, str, int]:
    """Return the columns that name a run."""
    return c.experiment, c.arm, c.spec.density, c.spec.digest(), c.seed


def _same_draw(a: Cell, b: Cell) -> bool:
    """Whether two runs search in the same initial weights, up to a factor, at the same density."""
    return (a.seed, a.spec.data, a.spec.model, a.spec.model_args, a.spec.init, a.spec.density) == (
        b.seed, b.spec.data, b.spec.model, b.spec.model_args, b.spec.init, b.spec.density
    )  # fmt: skip
