"""Export a ticket: write the files of a target, check them, and describe them in a report."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crbg.console import Table
from crbg.errors import CrbgError, WriteError
from crbg.export import registry
from crbg.export.check import Examples
from crbg.masks.mask import Mask
from crbg.storage.atomic import write_json
from crbg.ticket import Ticket

REPORT = "report.json"
BATCH = re.compile(r"(.+), batch (\d+), (.+)")  # keys of measured values that depend on the batch size
OWN = {"c": "to_c", "onnx": "to_onnx", "shrunk": "shrink"}  # functions for models outside the registry, by target


@dataclass(frozen=True)
class Report:
    """Description of an exported ticket, also written to `report.json`.

    Attributes:
        target: Name of the target.
        ticket: Description of the ticket (`Ticket.describe`).
        sizes: Sizes in bytes, see `sizes`.
        files: Size in bytes of each written file, by its path inside the folder.
        details: Details that the target reports.
        check: Result of the comparison with the original network; empty without a check.
        bench: Measured speed; empty if it was not measured.
    """

    target: str
    ticket: dict[str, Any]
    sizes: dict[str, int]
    files: dict[str, int]
    details: dict[str, Any]
    check: dict[str, Any]
    bench: dict[str, Any]

    def parts(self) -> list[Table | str]:
        """Return tables of sizes, check and speed for `crbg.console.show`."""
        dense = self.sizes["dense float32"]
        rows = [[name, f"{size:,}", f"{size / dense:.4f}"] for name, size in self.sizes.items()]
        out: list[Table | str] = [Table(["size", "bytes", "of dense float32"], rows)]
        for title, values in (("detail", self.details), ("check", self.check)):
            if values:
                out.append(_values(title, values))
        return out + _speed(self.bench)


def sizes(mask: Mask, written: int) -> dict[str, int]:
    """Return the size of a ticket in bytes, in several forms.

    - `dense float32`, `dense int8`: all gated weights, with four bytes or one byte for each.
    - `mask as bits`: one bit per weight.
    - `entropy by layer`: sum over tensors of n H(k / n) / 8 with H(p) = -p log2 p - (1 - p) log2(1 - p), for k of n
      kept weights. A code that knows only the density of each tensor cannot be shorter on average.
    - `written`: all files of the export, without the report.
    """
    entropy = 0.0
    for counts in mask.counts().values():
        p = counts["kept"] / counts["total"]
        entropy -= counts["total"] * sum(q * math.log2(q) for q in (p, 1 - p) if q)
    return {
        "dense float32": 4 * mask.total,
        "dense int8": mask.total,
        "mask as bits": (mask.total + 7) // 8,
        "entropy by layer": math.ceil(entropy / 8),
        "written": written,
    }


def export_ticket(
    ticket: Ticket,
    to: str,
    out: Path | str,
    *,
    examples: Examples | None = None,
    bench: bool = False,
    draw: str | None = None,
) -> Report:
    """Write a ticket in another form into a new folder, with a report.

    The folder appears only if everything succeeds, so a failed check leaves no files.

    Args:
        ticket: The ticket.
        to: Name of a target, one of `crbg.export.registry.TARGETS`.
        out: The folder, which must be new or empty.
        examples: If given, the result must give the same predictions as the ticket's network on these examples.
        bench: Whether to measure the speed of the result.
        draw: How the result obtains its weights, if the target offers a choice.

    Raises:
        CrbgError: the target, `draw` or the folder is not valid, the target does not support the ticket, or the check
            fails.
    """
    target, out = registry.get(to), Path(out).expanduser()
    if not isinstance(ticket, Ticket):
        raise CrbgError(
            f"expected a Ticket, not {type(ticket).__name__}; pass `found.ticket()`, or `Ticket.load(path)` for a file"
        )
    if draw is not None and draw not in target.draws:
        offered = f"choose from {', '.join(target.draws)}" if target.draws else "leave it out"
        raise CrbgError(f"the target {to!r} does not support draw={draw!r}; {offered}")
    if not ticket.model_name and to in OWN:
        raise CrbgError(
            f"the target {to!r} needs a network of crbg.models, and this ticket belongs to another model; in Python, "
            f"apply the ticket to the model and call crbg.export.{OWN[to]}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CrbgError(f"{out} exists already and is not an empty folder; choose another folder")
    exporter = target.load()
    with _new_folder(out) as work:
        details = exporter.write(ticket, work, draw or next(iter(target.draws), None))
        files = {str(p.relative_to(work)): p.stat().st_size for p in sorted(work.rglob("*")) if p.is_file()}
        report = Report(
            to,
            ticket.describe(),
            sizes(ticket.mask, sum(files.values())),
            files,
            details,
            exporter.check(ticket, work, examples) if examples is not None else {},
            exporter.bench(ticket, work) if bench else {},
        )
        write_json(work / REPORT, asdict(report))
    return report


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` at the end of the block, and is removed if the block fails."""
    work = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        work.chmod(0o755)
        yield work
        if out.exists():
            out.rmdir()  # it is empty; not every system replaces a folder when another one is renamed
        work.rename(out)
    except OSError as error:
        raise WriteError(f"cannot write {out}: {error.strerror}; choose another folder") from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _values(title: str, values: Mapping[str, Any]) -> Table:
    units = {k: ", %" if k.startswith("accuracy") else "" for k in values}
    return Table([title, "value"], [[k.replace("_", " ") + units[k], _text(v)] for k, v in values.items()])


def _speed(bench: Mapping[str, Any]) -> list[Table | str]:
    """Return a table with one column per batch size, and a table of the values that do not depend on it."""
    by_batch: dict[str, dict[int, str]] = {}
    rest = {}
    for key, value in bench.items():
        if found := BATCH.fullmatch(key):
            by_batch.setdefault(f"{found[1]}, {found[3]}", {})[int(found[2])] = _text(value)
        else:
            rest[key] = value
    sizes = sorted({size for row in by_batch.values() for size in row})
    rows = [[label, *(row.get(size, "-") for size in sizes)] for label, row in by_batch.items()]
    out: list[Table | str] = [Table(["speed", *(f"batch {size}" for size in sizes)], rows)] if rows else []
    return [*out, _values("memory and size", rest)] if rest else out


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
