"""Verify finished runs: derive the values in their records again from spec, seed and ticket, and compare.

No search is repeated. Initial weights and data order are drawn again from the seed. The mask is read from the ticket,
or drawn again for the method `random`, and accuracies are measured again with this mask. For a run without a ticket,
only counts and digests are checked.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from crbg.console import Progress, Table
from crbg.data.datasets import info
from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.data.parts import Data, TensorPart
from crbg.errors import CrbgError
from crbg.experiments import record_store
from crbg.experiments.config import Cell, Config
from crbg.experiments.record import Record, Run
from crbg.experiments.spec import Spec
from crbg.gates.attach import bake
from crbg.masks.mask import Mask
from crbg.models.initial_weights import tensor_digest
from crbg.runs import checks
from crbg.runs.setup import Workspace, draw_digest, initial_model, training_loader
from crbg.search.roles import CHANGED_ROLES, CODED_ROLES
from crbg.ticket import Ticket

PASS, FAIL, BARE, UNCHECKED = VERDICTS = ("PASS", "FAIL", "PASS without ticket", "unchecked")
# Errors that wrong values in a record can raise, for example in one edited by hand.
_MALFORMED = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Row:
    """The result for one run: the verdict, what was compared, and what failed (or why something was not compared)."""

    cell: Cell
    origin: str
    verdict: str
    checked: tuple[str, ...]
    remarks: tuple[str, ...]

    def words(self) -> tuple[str, str]:
        """Return what was compared and the remarks, as two texts."""
        return ", ".join(self.checked), "; ".join(self.remarks)


@dataclass(frozen=True)
class Verification:
    """The rows of all finished runs, the number of runs that are not done, and data sets that could not be loaded."""

    rows: list[Row]
    undone: int
    missing: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Return whether any run failed, or no run could be checked."""
        return any(row.verdict == FAIL for row in self.rows) or all(row.verdict == UNCHECKED for row in self.rows)

    def summary(self) -> str:
        """Return one line that counts the verdicts."""
        counts = Counter(row.verdict for row in self.rows)
        undone = f"; {self.undone} of the requested runs are not done" if self.undone else ""
        nothing = "" if counts.keys() - {UNCHECKED} else "NOTHING WAS VERIFIED, because the data are missing: "
        return nothing + ", ".join(f"{counts[v]} {v}" for v in VERDICTS) + undone

    def table(self) -> Table:
        """Return the rows of all runs that were checked as a table."""
        head = ("verdict", "experiment", "arm", "run", "seed", "record", "compared", "failed, or why not compared")
        return Table(
            head,
            [
                (r.verdict, r.cell.experiment, r.cell.arm, r.cell.spec.slug(), r.cell.seed, r.origin, *r.words())
                for r in self.rows
                if r.verdict != UNCHECKED
            ],
        )

    def absent(self) -> list[str]:
        """Return one line on each data set that could not be loaded, with the number of its runs."""
        counts = Counter(row.cell.spec.data for row in self.rows if row.verdict == UNCHECKED)
        return [
            f"{counts[name]} runs are unchecked, because {why}; `crbg data {name}` fetches it"
            for name, why in self.missing.items()
            if counts[name]
        ]

    def parts(self) -> list[str | Table]:
        """Return what `crbg verify` prints."""
        table = self.table()
        return [*([table] if table.rows else []), "\n".join([*self.absent(), self.summary()])]

    def markdown(self) -> str:
        """Return the summary, the table and the data sets that are missing as a Markdown document."""
        parts = [f"{self.summary()}.", *(f"{line}." for line in self.absent()), self.table().markdown()]
        return "# Result of `crbg verify`\n\n" + "\n\n".join(parts) + "\n"


def verify(config: Config, cells: Sequence[Cell], bench: Workspace) -> Verification:
    """Verify the finished runs among the cells.

    Raises:
        CrbgError: none of the cells is done.
    """
    runs = finished(config, cells)
    if not runs:
        raise CrbgError(
            f"none of the {len(cells)} requested runs is done, so nothing can be verified; "
            "`crbg status` shows what is missing"
        )
    verifier = Verifier(config, bench)
    with Progress(len(runs)) as progress:
        rows = verifier.rows(runs, progress.finish)
    return Verification(rows, len(cells) - len(runs), verifier.missing)


def finished(config: Config, cells: Iterable[Cell]) -> list[tuple[Cell, Run | CrbgError]]:
    """Return the finished runs among the cells. For a run with a malformed file, the error takes its place."""
    out: list[tuple[Cell, Run | CrbgError]] = []
    for cell in cells:
        try:
            if run := record_store.find_run(config, cell.spec, cell.seed):
                out.append((cell, run))
        except CrbgError as error:
            out.append((cell, error))
    return out


@dataclass
class _Findings:
    """What was compared in a run, the differences that were found, and notes on what could not be compared."""

    checked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, part: str, differences: Iterable[str]) -> None:
        """Add the differences in one part of a record. An error caused by a wrong value counts as a difference."""
        self.checked.append(part)
        try:
            for difference in differences:
                self.failed.append(f"{part}: {difference}")
        except KeyError as error:
            self.failed.append(f"{part}: {error} is missing")
        except _MALFORMED as error:
            self.failed.append(f"{part}: {error}")


@dataclass
class Verifier:
    """Verifies runs one by one and caches what they share.

    `missing` maps the name of each data set that could not be loaded to the error message.
    """

    config: Config
    bench: Workspace
    missing: dict[str, str] = field(default_factory=dict)
    _hollow: dict[str, Data] = field(default_factory=dict)
    _digests: dict[Any, str] = field(default_factory=dict)
    _network: tuple[Any, nn.Module, dict[str, str]] | None = None

    def rows(self, runs: Sequence[tuple[Cell, Run | CrbgError]], tick: Callable[[], None]) -> list[Row]:
        """Verify all runs, grouped by initial weights to build each network once; rows are in the order of `runs`."""
        done: dict[int, Row] = {}
        for i in sorted(range(len(runs)), key=lambda i: _weights_key(runs[i][0])):
            done[i] = self.check(*runs[i])
            tick()
        return [done[i] for i in range(len(runs))]

    def check(self, cell: Cell, run: Run | CrbgError) -> Row:
        """Compare the record of one run with values derived from its spec, seed and ticket."""
        if isinstance(run, CrbgError):
            return Row(cell, "", FAIL, (), (f"record: {run}",))
        record, here = run.record, _Findings()
        data = self._data(cell.spec)
        here.compare("spec", checks.same_spec(cell, record, run.evaluation))
        here.compare("weights", self._weights(cell, record))
        here.compare("data", self._order_and_data(cell, run, data))
        if not data:
            here.notes.append(f"data set {cell.spec.data!r} is not on this machine")
        mask: Mask | None = None
        if record.status == "collapse":
            here.notes.append(f"collapsed: {record.reason or 'no reason recorded'}")
        else:
            mask = self._check_mask(cell, run, data, here)
        verdict = FAIL if here.failed else UNCHECKED if not data else PASS if mask is not None else BARE
        if verdict == BARE and record.roles:
            changed = set(CHANGED_ROLES) & set(record.roles)
            none = "its weights were changed, so it has no ticket file"
            here.notes.append(none if changed else "its ticket file is not on this machine")
        origin = "recorded" if run.origin == "recorded" else "fresh"
        return Row(cell, origin, verdict, tuple(here.checked), (*here.failed, *here.notes))

    def _check_mask(self, cell: Cell, run: Run, data: Data | None, here: _Findings) -> Mask | None:
        """Compare everything that depends on the mask; return the mask, or None if it is unknown."""
        record, evaluation, (network, born) = run.record, run.evaluation, self._fresh(cell)
        ticket: Ticket | None = None
        mask: Mask | None = None
        try:
            ticket = self._ticket(cell, run.origin)
            mask = ticket.mask if ticket else checks.drawn_again(cell, network, self._batches(cell))
        except CrbgError as error:
            here.failed.append(f"mask: {error}")
        here.compare("density", checks.same_density(cell.spec, record, evaluation))
        if mask is not None:
            here.compare("mask", checks.same_mask(mask, record))
        if ticket is not None:
            here.compare("ticket", self._header(cell, ticket))
        factors = ticket.factors if ticket else {}
        allowed = CHANGED_ROLES if mask is None else CODED_ROLES if factors else ()
        here.compare("roles", checks.same_roles(record, born, allowed))
        if factors:
            network = bake(copy.deepcopy(network), factors)
        for name, said in (("validation", record.validation), ("test", evaluation.test if evaluation else None)):
            if mask is not None and data and said:
                # The test images are read only here, and only for runs that were evaluated on them before.
                part = getattr(data, name)
                here.compare(f"{name} {data.metric.title}", checks.same_result(network, mask, data, part, said))
        return mask

    def _data(self, spec: Spec) -> Data | None:
        """Return the data set of a run, or None if it is not on this machine. Verification never downloads data."""
        if spec.data not in self.missing:
            try:
                return self.bench.data(spec.data, False, spec.split).sized(spec.size)
            except CrbgError as error:
                self.missing[spec.data] = str(error)
        return None

    def _sizes(self, spec: Spec) -> Data:
        """Return a stand-in for a data set that has its shapes but no images; weights and data order need no more."""
        name = spec.data
        if name not in self._hollow:
            entry = info(name)
            if entry.kind != "images":
                counts = (entry.train, entry.validation, entry.test)
                a, b, c = (TensorPart(torch.zeros(1).expand(n, *entry.shape), torch.zeros(n)) for n in counts)
                self._hollow[name] = Data(name, a, b, c, entry.classes, "", metric=entry.metric).to(self.bench.device)
                return self._hollow[name]
            mean, std = torch.tensor(entry.mean), torch.tensor(entry.std)

            def part(n: int) -> ImagePart:
                image = torch.zeros(1, *entry.shape, dtype=torch.uint8)  # all rows are this one image
                rows = torch.zeros(n, dtype=torch.int64)
                return ImagePart(image, rows, mean, std, rows=rows)

            train, validation, test = (part(n) for n in (entry.train, entry.validation, entry.test))
            hollow = Data(name, train, validation, test, entry.classes, "", torch.tensor([]))
            self._hollow[name] = hollow.to(self.bench.device)
        return self._hollow[name].sized(spec.size)

    def _batches(self, cell: Cell) -> BatchLoader:
        return training_loader(cell.spec, self._sizes(cell.spec), cell.seed)

    def _fresh(self, cell: Cell) -> tuple[nn.Module, dict[str, str]]:
        """Rebuild the initial network of a run with its roles. Only the latest network is cached."""
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

    def _weights(self, cell: Cell, record: Record) -> Iterator[str]:
        # The weights before scaling do not depend on the scale, which is the last entry of the key.
        draw = self._once(
            ("draw", _weights_key(cell)[:-1]), lambda: draw_digest(cell.spec, self._fresh(cell)[0], cell.seed)
        )
        yield from checks.differ("initial weights of this seed", self._initial(cell), record.digests.initial)
        yield from checks.differ("unscaled weights of this seed", draw, record.digests.draw)

    def _order_and_data(self, cell: Cell, run: Run, data: Data | None) -> Iterator[str]:
        batches, digests = self._batches(cell), run.record.digests
        order = self._once(("order", len(batches.part), batches.size, batches.seed), batches.digest)
        yield from checks.differ("data order of this seed", order, digests.order)
        if run.evaluation:
            yield from checks.differ("data of the evaluation", run.evaluation.data, digests.data)
        if data:
            yield from checks.differ(f"{data.name} on this machine", data.digest, digests.data)

    def _ticket(self, cell: Cell, origin: str) -> Ticket | None:
        """Load the ticket of a record: a committed ticket for a committed record, a fresh one for a fresh record."""
        fresh = record_store.run_folder(self.config, cell.spec, cell.seed) / "ticket.safetensors"
        path = record_store.recorded_ticket(self.config, cell.spec, cell.seed) if origin == "recorded" else fresh
        return Ticket.load(path) if path.exists() else None

    def _header(self, cell: Cell, ticket: Ticket) -> Iterator[str]:
        spec, entry = cell.spec, info(cell.spec.data)
        wanted = {
            "seed": cell.seed,
            "law": spec.init,
            "scale": spec.scale,
            "model_name": spec.model,
            "model_args": dict(spec.model_args),
            "in_shape": self._sizes(spec).in_shape,
            "classes": entry.classes,
            "initial": self._initial(cell),
        }
        for name, value in wanted.items():
            if getattr(ticket, name) != value:
                yield f"{name} is {getattr(ticket, name)!r}, but the spec and the seed require {value!r}"


def _weights_key(cell: Cell) -> tuple[Any, ...]:
    """Return all values on which the initial weights depend, with the scale last."""
    s, entry = cell.spec, info(cell.spec.data)
    network = (s.model, json.dumps(dict(s.model_args), sort_keys=True))
    return (entry.shape, s.size, entry.classes, *network, s.init, cell.seed, s.scale)
