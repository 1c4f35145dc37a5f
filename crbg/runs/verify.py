"""The sceptic's reading of finished runs: what a record claims is derived again from its spec, its seed and its ticket.

No search is repeated. Weights, unit draw and data order are drawn again from the seed, the mask is the ticket's (or,
for a random mask, drawn again too), and accuracies are measured again. A run without a ticket is held to its own counts
and digests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from crbg import methods
from crbg.data.datasets import info
from crbg.data.loader import BatchLoader, Data, Part
from crbg.errors import CrbgError
from crbg.experiments import record_store
from crbg.experiments.config import Cell, Config
from crbg.experiments.spec import Spec, spec_from
from crbg.masks.mask import Mask
from crbg.masks.select import keep_count
from crbg.methods.crbg import LANDED
from crbg.models.initial_weights import tensor_digest
from crbg.runs.readings import accuracy
from crbg.runs.setup import Workspace, draw_digest, initial_model, training_loader
from crbg.storage.atomic import finite
from crbg.ticket import Ticket

TOLERANCE = 0.05  # points of accuracy, 5 of 10 000 images: rounding differs between processors
PER_LAYER = ("edge_popup", "random")  # keep the share asked for of every tensor, exactly
WITHOUT_DENSITY = ("dense", "probe", "sparse_vd")
PASS, FAIL, BARE, UNCHECKED = VERDICTS = ("PASS", "FAIL", "PASS without ticket", "unchecked")
# What a record that somebody wrote by hand can make its reader raise.
_MALFORMED = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Row:
    """One run: the verdict, the parts that were compared, and what failed (or why less than all was compared)."""

    cell: Cell
    origin: str
    verdict: str
    checked: tuple[str, ...]
    remarks: tuple[str, ...]


def finished(config: Config, cells: Iterable[Cell]) -> list[tuple[Cell, dict[str, Any]]]:
    """Find the finished runs among cells. A run whose files cannot be read has an `error` instead of a record."""
    out: list[tuple[Cell, dict[str, Any]]] = []
    for cell in cells:
        try:
            if found := record_store.find(config, cell.spec, cell.seed):
                out.append((cell, found))
        except CrbgError as error:
            out.append((cell, {"error": str(error)}))
    return out


@dataclass
class Verifier:
    """Checks runs one by one and keeps what they share. `missing` says of each data set that is not here why."""

    config: Config
    bench: Workspace
    missing: dict[str, str] = field(default_factory=dict)
    _hollow: dict[str, Data] = field(default_factory=dict)
    _digests: dict[Any, str] = field(default_factory=dict)
    _network: tuple[Any, nn.Module, dict[str, str]] | None = None

    def rows(self, runs: Sequence[tuple[Cell, dict[str, Any]]], tick: Callable[[], None]) -> list[Row]:
        """Check all runs, those with the same initial weights one after the other; rows keep the order of the runs."""
        done: dict[int, Row] = {}
        for i in sorted(range(len(runs)), key=lambda i: _weights_key(runs[i][0])):
            done[i] = self.check(*runs[i])
            tick()
        return [done[i] for i in range(len(runs))]

    def check(self, cell: Cell, found: Mapping[str, Any]) -> Row:
        """Compare what is recorded of one run with what its spec, seed and ticket give."""
        if "error" in found:
            return Row(cell, "", FAIL, (), (f"record: {found['error']}",))
        spec, record, evaluation = cell.spec, found["record"], found.get("evaluation") or {}
        checked: list[str] = []
        failed: list[str] = []

        def compare(part: str, differences: Iterable[str]) -> None:
            checked.append(part)
            try:
                for difference in differences:
                    failed.append(f"{part}: {difference}")
            except KeyError as error:
                failed.append(f"{part}: {error} is missing")
            except _MALFORMED as error:
                failed.append(f"{part}: {error}")

        data, feed, (network, born) = self._data(spec), self._feed(cell), self._fresh(cell)
        compare("spec", _spec(cell, record, evaluation))
        compare("weights", self._weights(cell, record))
        compare("data", self._order_and_data(cell, record, evaluation, feed, data))
        notes = [] if data else [f"data not here: {spec.data}"]
        mask: Mask | None = None
        if record.get("status") == "collapse":
            notes.append(f"collapsed: {record.get('reason', 'no reason recorded')}")
        else:
            ticket: Ticket | None = None
            try:
                ticket = self._ticket(cell, found["origin"])
                mask = ticket.mask if ticket else _drawn_again(cell, network, feed)
            except CrbgError as error:
                failed.append(f"mask: {error}")
            compare("density", _density(spec, record, evaluation))
            if mask is not None:
                compare("mask", _mask(mask, record))
            if ticket is not None:
                compare("ticket", self._header(cell, ticket))
            compare("roles", _roles(record, born, strong=mask is not None))
            for name, said in (("validation", record.get("validation")), ("test", evaluation.get("test"))):
                if mask is not None and data and said:
                    # The test part is looked at only here, for runs that were evaluated on it before.
                    compare(f"{name} accuracy", _accuracy(network, mask, data, getattr(data, name), said))
        verdict = FAIL if failed else UNCHECKED if not data else PASS if mask is not None else BARE
        if verdict == BARE and "roles" in record:
            changed = {"trained", "redrawn"} & set(record["roles"])
            notes.append(
                "its weights were trained or redrawn, which no ticket holds" if changed else "its ticket is not here"
            )
        return Row(
            cell, "recorded" if found["origin"] == "recorded" else "fresh", verdict, tuple(checked), (*failed, *notes)
        )

    def _data(self, spec: Spec) -> Data | None:
        """Load a run's data set once; nothing is downloaded, for a check must not fetch what it checks against."""
        if spec.data not in self.missing:
            try:
                return self.bench.data(spec.data, download=False).sized(spec.size)
            except CrbgError as error:
                self.missing[spec.data] = str(error)
        return None

    def _sizes(self, spec: Spec) -> Data:
        """Stand-in for a run's data set with its shapes and no images: weights and data order follow from these alone."""
        name = spec.data
        if name not in self._hollow:
            entry = info(name)
            mean, std = torch.tensor(entry.mean), torch.tensor(entry.std)

            def part(n: int) -> Part:
                return Part(
                    torch.zeros(1, dtype=torch.uint8).expand(n, *entry.shape),
                    torch.zeros(n, dtype=torch.int64),
                    mean,
                    std,
                )

            train, validation, test = (part(n) for n in (entry.train, entry.validation, entry.test))
            self._hollow[name] = Data(name, train, validation, test, entry.classes, "", torch.tensor([])).to(
                self.bench.device
            )
        return self._hollow[name].sized(spec.size)

    def _feed(self, cell: Cell) -> BatchLoader:
        return training_loader(cell.spec, self._sizes(cell.spec), cell.seed)

    def _fresh(self, cell: Cell) -> tuple[nn.Module, dict[str, str]]:
        """Draw the initial network and its roles again; the last ones are kept, since runs come sorted by them."""
        key = _weights_key(cell)
        if self._network is None or self._network[0] != key:
            self._network = (key, *initial_model(cell.spec, self._sizes(cell.spec), cell.seed))
        return self._network[1:]

    def _once(self, key: Any, digest: Callable[[], str]) -> str:
        if key not in self._digests:
            self._digests[key] = digest()
        return self._digests[key]

    def _initial(self, cell: Cell) -> str:
        return self._once(("initial", _weights_key(cell)), lambda: tensor_digest(self._fresh(cell)[0].state_dict()))

    def _weights(self, cell: Cell, record: Mapping[str, Any]) -> Iterator[str]:
        # All of the key but the scale, which the unit draw does not know.
        draw = self._once(
            ("draw", _weights_key(cell)[:-1]), lambda: draw_digest(cell.spec, self._fresh(cell)[0], cell.seed)
        )
        yield from _differ("initial weights of this seed", self._initial(cell), record["digests"]["initial"])
        yield from _differ("unit draw of this seed", draw, record["digests"]["draw"])

    def _order_and_data(
        self, cell: Cell, record: Mapping[str, Any], evaluation: Mapping[str, Any], feed: BatchLoader, data: Data | None
    ) -> Iterator[str]:
        order = self._once(("order", len(feed.part), feed.size, feed.seed), feed.digest)
        yield from _differ("data order of this seed", order, record["digests"]["order"])
        if evaluation:
            yield from _differ("data of the evaluation", evaluation["data"], record["digests"]["data"])
        if data:
            yield from _differ(f"{data.name} as it is here", data.digest, record["digests"]["data"])

    def _ticket(self, cell: Cell, origin: str) -> Ticket | None:
        """Load the ticket that lies beside the record: a fresh record never leans on a committed ticket, nor the reverse."""
        fresh = record_store.run_folder(self.config, cell.spec, cell.seed) / "ticket.safetensors"
        path = record_store.recorded_ticket(self.config, cell.spec, cell.seed) if origin == "recorded" else fresh
        return Ticket.load(path) if path.exists() else None

    def _header(self, cell: Cell, ticket: Ticket) -> Iterator[str]:
        spec, entry = cell.spec, info(cell.spec.data)
        wanted = {
            "seed": cell.seed, "law": spec.init, "scale": spec.scale, "model_name": spec.model, "model_args": dict(spec.model_args),
            "in_shape": self._sizes(spec).in_shape, "classes": entry.classes, "initial": self._initial(cell),
        }  # fmt: skip
        for name, value in wanted.items():
            if getattr(ticket, name) != value:
                yield f"{name} is {getattr(ticket, name)!r}, not {value!r} as the spec and the seed give"


def _weights_key(cell: Cell) -> tuple[Any, ...]:
    """What initial weights depend on, the scale last."""
    s, entry = cell.spec, info(cell.spec.data)
    return (
        entry.shape,
        s.size,
        entry.classes,
        s.model,
        json.dumps(dict(s.model_args), sort_keys=True),
        s.init,
        cell.seed,
        s.scale,
    )


def _differ(what: str, here: str, recorded: Any) -> Iterator[str]:
    if here != recorded:
        yield f"{what}: digest {here[:12]}..., recorded {str(recorded)[:12]}..."


def _spec(cell: Cell, record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[str]:
    named, asked = spec_from(record["spec"], "the spec in the record").digest(), cell.spec.digest()
    if not named == record["digest"] == asked:
        yield f"the spec in the record has digest {named}, the record says {record['digest']}, asked for was {asked}"
    version = methods.get(cell.spec.method).VERSION
    if record["version"] != version:
        yield f"{cell.spec.method} is at version {version}, recorded {record['version']}"
    if record["seed"] != cell.seed:
        yield f"the record is of seed {record['seed']}, not {cell.seed}"
    if record["status"] not in ("ok", "collapse"):
        yield f"unknown status {record['status']!r}"
    if evaluation and [evaluation[k] for k in ("digest", "seed", "mask")] != [
        record["digest"],
        record["seed"],
        record["digests"]["mask"],
    ]:
        yield "the evaluation is of another run or another mask"


def _density(spec: Spec, record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Hold the recorded counts to the recorded density, and to the one asked for."""
    counts = record["layers"]
    kept, total = (sum(c[k] for c in counts.values()) for k in ("kept", "total"))
    read = [part for part in (record.get("validation"), evaluation.get("test")) if part]
    for said in (record["density"], *(part["readings"]["binary"]["density"] for part in read)):
        if said != finite(kept / total):
            yield f"{kept} of {total} kept is {kept / total:.6g}, recorded {said:.6g}"
    if spec.density is None or spec.method in WITHOUT_DENSITY:
        return
    if spec.method in PER_LAYER and getattr(spec.resolved(), "scope", "layer") == "layer":
        for name, c in counts.items():
            if c["kept"] != (k := keep_count(spec.density, c["total"])):
                yield f"{c['kept']} kept of {name}, exactly {k} were asked for"
        return
    what = "weights"
    if units := record.get("anatomy", {}).get("units"):
        what, kept, total = "units", sum(c["kept"] for c in units.values()), sum(c["total"] for c in units.values())
    k, missed = keep_count(spec.density, total), any(part.get("density_missed") for part in read)
    if abs(kept - k) > (0 if missed else LANDED * k):
        yield f"{kept} {what} kept, {k} were asked for" + (" (cut to exactly that)" if missed else "")


def _drawn_again(cell: Cell, model: nn.Module, feed: BatchLoader) -> Mask | None:
    """Derive the mask of a random control from its seed; of other methods only the search knows the mask."""
    if cell.spec.method != "random":
        return None
    method = methods.get("random")
    task = methods.SearchTask(feed, cell.spec.density, 0, cell.seed, nn.functional.cross_entropy)
    found: methods.SearchResult = method.find(model, task, cell.spec.resolved())
    return found.mask


def _mask(mask: Mask, record: Mapping[str, Any]) -> Iterator[str]:
    yield from _differ("kept weights", mask.digest(), record["digests"]["mask"])
    if finite(mask.density) != record["density"]:
        yield f"density {mask.density:.6g}, recorded {record['density']:.6g}"
    yield from _counts(mask.counts(), record["layers"])
    if recorded := record.get("anatomy", {}).get("units"):
        yield from _counts({n: _units(mask[n], c["total"]) for n, c in recorded.items()}, recorded)


def _units(t: Tensor, total: int) -> dict[str, int]:
    """Count the units whose input columns are kept; a unit that is kept in part counts as none, and shows as a difference."""
    columns = t.movedim(1, 0).reshape(total, -1)
    whole, any_kept = columns.all(1), columns.any(1)
    return {"kept": int(whole.sum()) if torch.equal(whole, any_kept) else -1, "total": total}


def _counts(here: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[str]:
    for name in {**here, **recorded}:
        if here.get(name) != recorded.get(name):
            yield f"{name} has {here.get(name)}, recorded {recorded.get(name)}"


def _roles(record: Mapping[str, Any], fresh: Mapping[str, str], strong: bool) -> Iterator[str]:
    """Every tensor has one role: the one it was born with, or, where the method trains, `trained` or `redrawn`."""
    told = Counter(name for names in record["roles"].values() for name in names)
    for name in [n for n in {**fresh, **told} if told[n] != 1 or n not in fresh]:
        yield f"{name} has {told[name]} roles" + ("" if name in fresh else " and is no tensor of the network")
    for role, names in record["roles"].items():
        changed = role in ("trained", "redrawn")
        for name in (n for n in names if n in fresh and role != fresh[n] and (strong or not changed)):
            yield f"{name} is {role}" + (", in a strong ticket" if changed else f", not {fresh[name]}")


def _accuracy(model: nn.Module, mask: Mask, data: Data, part: Part, said: Mapping[str, Any]) -> Iterator[str]:
    recorded = float(said["readings"]["binary"]["accuracy"])
    again = float(accuracy(model, mask, data, part).accuracy or 0.0)
    if not abs(again - recorded) <= TOLERANCE + 1e-9:
        yield f"{again:.2f} % again, recorded {recorded:.2f} %"


def table(rows: Iterable[Row], style: str = "simple") -> str:
    """Lay the rows out for a terminal, or with `github` for a Markdown file."""
    from tabulate import tabulate

    head = [
        "verdict",
        "experiment",
        "arm",
        "run",
        "seed",
        "record",
        "compared",
        "what failed, or why not all was compared",
    ]
    body = [
        [r.verdict, r.cell.experiment, r.cell.arm, r.cell.spec.slug(), r.cell.seed, r.origin, ", ".join(r.checked),
         " ".join("; ".join(r.remarks).replace("|", "/").split())]
        for r in rows
    ]  # fmt: skip
    return tabulate(body, head, tablefmt=style, disable_numparse=True)


def summary(rows: Iterable[Row]) -> str:
    """Count the verdicts in one line."""
    counts = Counter(r.verdict for r in rows)
    return ", ".join(f"{counts[v]} {v}" for v in VERDICTS)
