"""Compare the record of a finished run with values derived again from its spec, seed and ticket.

Each function yields one message for each difference, and nothing if the values agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crbg import methods
from crbg.data.loader import BatchLoader
from crbg.data.parts import Data, Part
from crbg.experiments.config import Cell
from crbg.experiments.record import Count, Evaluation, Measurement, Record
from crbg.experiments.spec import Spec, spec_from
from crbg.masks.mask import Mask
from crbg.masks.select import keep_count
from crbg.methods.crbg import LANDED
from crbg.runs.readings import measured
from crbg.search.roles import CHANGED_ROLES
from crbg.storage.atomic import finite

WITHOUT_DENSITY = ("dense", "probe", "sparse_vd")


def differ(what: str, here: str, recorded: Any) -> Iterator[str]:
    """Compare a digest with the recorded one; `what` names it in the message."""
    if here != recorded:
        yield f"{what}: digest {here[:12]}..., recorded {str(recorded)[:12]}..."


def same_spec(cell: Cell, record: Record, evaluation: Evaluation | None) -> Iterator[str]:
    """Compare the recorded spec, seed and version of the method with those of the cell."""
    named, asked = spec_from(record.spec, "the spec in the record").digest(), cell.spec.digest()
    if not named == record.digest == asked:
        yield f"the spec in the record has digest {named}, the record names {record.digest}, {asked} was expected"
    version = methods.get(cell.spec.method).VERSION
    if record.version != version:
        yield f"{cell.spec.method} is at version {version}, recorded {record.version}"
    if record.seed != cell.seed:
        yield f"the record belongs to seed {record.seed}, not {cell.seed}"
    if record.status not in ("ok", "collapse"):
        yield f"unknown status {record.status!r}"
    if evaluation:
        evaluated = (evaluation.digest, evaluation.seed, evaluation.mask)
        if evaluated != (record.digest, record.seed, record.digests.mask):
            yield "the evaluation belongs to another run or another mask"


def same_density(spec: Spec, record: Record, evaluation: Evaluation | None) -> Iterator[str]:
    """Compare the recorded counts with the recorded density and with the target density."""
    counts = record.layers
    if not counts:
        yield "no counts are recorded"
        return
    kept, total = _sum(counts)
    read = [part for part in (record.validation, evaluation.test if evaluation else None) if part]
    for said in (record.density, *(part.readings["binary"].density for part in read)):
        if said != finite(kept / total):
            yield f"{kept} of {total} kept gives density {kept / total:.6g}, recorded {said}"
    if spec.density is None or spec.method in WITHOUT_DENSITY:
        return
    if methods.traits(spec.method).per_layer and getattr(spec.resolved(), "scope", "layer") == "layer":
        for name, c in counts.items():
            if c.kept != (k := keep_count(spec.density, c.total)):
                yield f"{c.kept} kept of {name}, the target is exactly {k}"
        return
    units = record.units()
    what, (kept, total) = ("units", _sum(units)) if units else ("weights", (kept, total))
    k, missed = keep_count(spec.density, total), any(part.density_missed for part in read)
    if abs(kept - k) > (0 if missed else LANDED * k):
        yield f"{kept} {what} kept, the target is {k}" + (" (cut to exactly that)" if missed else "")


def _sum(counts: Mapping[str, Count]) -> tuple[int, int]:
    """Return the kept and the total counts, summed over all tensors."""
    return sum(c.kept for c in counts.values()), sum(c.total for c in counts.values())


def drawn_again(cell: Cell, model: nn.Module, feed: BatchLoader) -> Mask | None:
    """Return the mask of the method `random`, drawn again from its seed; None for all other methods."""
    if cell.spec.method != "random":
        return None
    method = methods.get("random")
    task = methods.SearchTask(feed, cell.spec.density, 0, cell.seed, nn.functional.cross_entropy)
    found: methods.SearchResult = method.find(model, task, cell.spec.resolved())
    return found.mask


def same_mask(mask: Mask, record: Record) -> Iterator[str]:
    """Compare a mask with the recorded digest, density and counts."""
    yield from differ("kept weights", mask.digest(), record.digests.mask)
    if finite(mask.density) != record.density:
        yield f"density {mask.density:.6g}, recorded {record.density}"
    yield from same_counts(mask.counts(), record.layers or {})
    units = record.units()
    yield from same_counts({n: whole_units(mask[n], c.total) for n, c in units.items()}, units)


def whole_units(t: Tensor, total: int) -> dict[str, int]:
    """Count the kept units. If only some of the weights of a unit are kept, `kept` is -1, an invalid count."""
    columns = t.movedim(1, 0).reshape(total, -1)
    whole, any_kept = columns.all(1), columns.any(1)
    return {"kept": int(whole.sum()) if torch.equal(whole, any_kept) else -1, "total": total}


def same_counts(here: Mapping[str, Mapping[str, int]], recorded: Mapping[str, Count]) -> Iterator[str]:
    """Compare the counts of every tensor."""
    said = {name: count.to_json() for name, count in recorded.items()}
    for name in {**here, **said}:
        if here.get(name) != said.get(name):
            yield f"{name} has {here.get(name)}, recorded {said.get(name)}"


def same_roles(record: Record, fresh: Mapping[str, str], allowed: Collection[str]) -> Iterator[str]:
    """Check that each tensor has one role: its initial role, or one of the `allowed` roles of changed tensors."""
    roles = record.roles or {}
    listed = Counter(name for names in roles.values() for name in names)
    for name in [n for n in {**fresh, **listed} if listed[n] != 1 or n not in fresh]:
        yield f"{name} has {listed[name]} roles" + ("" if name in fresh else " and is not a tensor of the network")
    for role, names in roles.items():
        changed = role in CHANGED_ROLES
        for name in (n for n in names if n in fresh and role != fresh[n] and role not in allowed):
            yield f"{name} is {role}" + (", in a strong ticket" if changed else f", not {fresh[name]}")


def same_result(model: nn.Module, mask: Mask, data: Data, part: Part, said: Measurement) -> Iterator[str]:
    """Measure a ticket again, and compare the result with the recorded one within the tolerance of the metric."""
    metric, recorded, again = data.metric, said.value(), float(measured(model, mask, data, part).value or 0.0)
    if recorded is None:
        yield f"measured {metric.text(again)}, but no {metric.title} is recorded"
    elif not abs(again - recorded) <= metric.tolerance + 1e-9:
        yield f"measured {metric.text(again)}, recorded {metric.text(recorded)}"
