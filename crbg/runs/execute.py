"""Execute one run, from its spec and seed to its files. The workflow, the command line and the tests use `execute`.

The folder `results/runs/<slug>/seed<k>/` contains record.json (deterministic), provenance.json (times, device,
versions), the ticket and the gates (safetensors), history.jsonl, evaluation.json if the run was evaluated on the test
set, and checkpoints during the run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from crbg import methods
from crbg.data.images import ImagePart
from crbg.data.metrics import ACCURACY, BITS
from crbg.data.parts import Data
from crbg.errors import CrbgError, GpuFullError, WriteError
from crbg.experiments import attempts
from crbg.experiments.record import FIRST, SCHEMA, Digests, Record
from crbg.experiments.spec import Spec, as_dict, folder
from crbg.masks.mask import Mask
from crbg.measure import outputs, quality, relaxation
from crbg.models.initial_weights import tensor_digest
from crbg.runs.artifacts import save_artifacts
from crbg.runs.file_size import round_weights
from crbg.runs.provenance import provenance, revision
from crbg.runs.readings import describe_ticket, fit_temperature
from crbg.runs.setup import RunSetup, Workspace, draw_digest, initial_model, set_up, stage_cache_for
from crbg.search.run_search import run_search
from crbg.storage import lock
from crbg.storage.atomic import cannot_write, read_json, write_json
from crbg.training import distributed
from crbg.training.clock import Clock, Collapse, OutOfTime
from crbg.training.device import check_precision


def execute(spec: Spec, seed: int, workspace: Workspace, clock: Clock | None = None) -> Record:
    """Execute one run and return its record; if the run is finished, only read its record.

    Each attempt is logged in the folder of the run.

    Raises:
        OutOfTime: the clock's deadline passed; call again to resume.
        HeldError: another process is executing the run.
        WriteError: the disk of the results folder is full or read-only.
        CrbgError: the input is invalid, or the search changed a tensor that it must not change.
    """
    where = folder(workspace.results, spec, seed)
    path = where / "record.json"
    if path.exists():
        return Record.from_json(read_json(path), str(path))
    try:
        with lock.hold(where):
            if path.exists():
                return Record.from_json(read_json(path), str(path))
            attempts.begin(where, device=str(workspace.device), revision=revision())
            if distributed.size() > 1:
                distributed.broadcast((spec, seed))
            try:
                record = _run(spec, seed, workspace, clock or Clock(), where)
            except BaseException as error:
                with suppress(OSError):  # the disk may be what failed
                    attempts.end(where, _outcome(error), error)
                raise
            attempts.end(where, attempts.DONE)
            return record
    except OSError as error:
        raise cannot_write(where, error) from None


def run_as_worker(workspace: Workspace, clock: Clock) -> None:
    """Take part in the runs that the first of several processes starts, until none are left."""
    while order := distributed.broadcast():
        spec, seed = order
        setup = set_up(spec, seed, _data(spec, workspace))
        with suppress(OutOfTime):
            _search(setup, workspace, clock, folder(workspace.results, spec, seed))


def _outcome(error: BaseException) -> str:
    """Classify an error by whether another attempt can succeed."""
    if isinstance(error, OutOfTime):
        return attempts.PAUSED
    if isinstance(error, lock.HeldError):
        return attempts.WAITED
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, GpuFullError)) or "DefaultCPUAllocator" in str(error):
        return attempts.MEMORY
    if isinstance(error, (OSError, WriteError)):
        return attempts.DISK
    if isinstance(error, CrbgError):
        return attempts.INPUT
    if distributed.size() > 1 and isinstance(error, RuntimeError):
        return attempts.KILLED  # a collective call failed because another process or its node died
    return attempts.CODE if isinstance(error, Exception) else attempts.KILLED


def _data(spec: Spec, workspace: Workspace) -> Data:
    check_precision(spec.precision, workspace.device)
    return workspace.data(spec.data, split=spec.split).sized(spec.size)


def _run(spec: Spec, seed: int, workspace: Workspace, clock: Clock, where: Path) -> Record:
    """Search, measure and write the files of a run."""
    data, watch = _data(spec, workspace), _Stopwatch()
    setup = set_up(spec, seed, data)
    record = _begin(setup)
    found, reason = _search(setup, workspace, clock, where)
    searched, searched_cpu = watch.seconds() + clock.earlier, watch.cpu_seconds() + clock.earlier_cpu
    if found is None:
        record = replace(record, status="collapse", reason=reason)
    else:
        record = _describe(setup, record, found, where)
    write_json(where / "provenance.json", provenance(workspace.device, searched, searched_cpu, watch.seconds()))
    write_json(where / "record.json", record.to_json())
    for leftover in where.glob("checkpoint.*"):
        leftover.unlink()
    return record


@dataclass(frozen=True)
class _Stopwatch:
    """Measures wall time and CPU time since its creation."""

    started: float = field(default_factory=time.monotonic)
    started_cpu: float = field(default_factory=time.process_time)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def cpu_seconds(self) -> float:
        return time.process_time() - self.started_cpu


def _begin(setup: RunSetup) -> Record:
    """Return the part of the record that is known before the search."""
    spec, data, loader = setup.spec, setup.data, setup.loader
    initial, draw = tensor_digest(setup.model.state_dict()), draw_digest(spec, setup.model, setup.seed)
    return Record(
        schema=FIRST if data.metric is ACCURACY else SCHEMA,
        digest=spec.digest(),
        spec=as_dict(spec),
        version=methods.get(spec.method).VERSION,
        seed=setup.seed,
        status="ok",
        steps=setup.steps,
        train_images=len(loader.part),
        digests=Digests(initial=initial, draw=draw, data=data.digest, order=loader.digest()),
        lossy_images=dict(data.lossy) if any(data.lossy.values()) else None,
    )


def _search(
    setup: RunSetup, workspace: Workspace, clock: Clock, where: Path
) -> tuple[methods.SearchResult | None, str]:
    """Search for the ticket. Return (None, reason) if the search collapsed.

    Raises:
        GpuFullError: the GPU's memory is full; the message names a batch size that fits.
    """
    spec, data = setup.spec, setup.data
    clock.whole = setup.steps
    task = methods.SearchTask(
        setup.loader,
        spec.density,
        spec.epochs,
        setup.seed,
        data.loss,
        where / "checkpoint.pt",
        clock,
        spec.precision,
        redraw=lambda seed: initial_model(spec, data, seed)[0].state_dict(),
        stages=stage_cache_for(setup, workspace.results, clock),
        validate=_validate(data) if spec.fit_on == "train" else None,
        watch=_watch(spec, data) if spec.watch_images else None,
    )
    if workspace.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(workspace.device)
    try:
        found = run_search(setup.model, task, methods.get(spec.method), spec.resolved(), setup.roles)
    except Collapse as outcome:
        return None, str(outcome)
    except torch.OutOfMemoryError as error:
        full = str(error).split(". ")[0]
    else:
        if found.changed and found.running:  # changed weights are measured with the statistics of their search
            setup.model.load_state_dict(found.running, strict=False)
        return found, ""
    # Raised outside the `except` block, because inside it the traceback would keep the search's tensors in memory.
    raise GpuFullError(f"{spec.slug()}: the GPU's memory is full ({full}); {_advice(setup)}")


def _validate(data: Data) -> Callable[[nn.Module], float]:
    """Return a function that measures a model on the validation part, as its record does; larger is better."""

    def validate(model: nn.Module) -> float:
        temperature = (fit_temperature(model, None, data) or 1.0) if data.metric is BITS else 1.0
        return data.metric.better(quality(model, data.validation.batches(), None, data.metric, temperature))

    return validate


def _watch(spec: Spec, data: Data) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that compares relaxed gates with the binary ticket on the first validation images."""
    few, density = data.validation.take(slice(spec.watch_images)), spec.density or 0.0
    return lambda model: relaxation(model, few.batches(), data.loss, density)


def _describe(setup: RunSetup, record: Record, found: methods.SearchResult, where: Path) -> Record:
    """Measure the ticket, write its files and complete the record."""
    if setup.spec.weight_bits:
        round_weights(setup.model, found.mask, setup.spec.weight_bits)
    record = replace(record, **describe_ticket(setup, found))
    gates, size = save_artifacts(setup, found, where, record.digests.initial)
    digests = replace(record.digests, mask=found.mask.digest(), gates=gates)
    record = replace(record, digests=digests, file_bytes=size)
    empty = [n for n, count in (record.layers or {}).items() if count.kept == 0]
    # A network with trained weights can work without a layer that a skip connection bypasses.
    if empty and found.start is None and _ignores_inputs(setup, found.mask):
        record = replace(record, status="collapse", reason=f"nothing is left of {', '.join(empty)}")
    return record


def _ignores_inputs(setup: RunSetup, mask: Mask) -> bool:
    """Whether a ticket that has lost a layer cannot work.

    A graph attention network works without its attention vectors, for example. For images, a lost layer is always a
    collapse, as in the records of former versions.
    """
    part = setup.data.validation
    if isinstance(part, ImagePart):
        return True
    out, _ = outputs(setup.model, part.batch(slice(100)), mask)
    return bool((out == out[:1]).all())


def _advice(setup: RunSetup) -> str:
    """Return advice for the user: a batch size that fits, found by halving it until a search of two steps succeeds."""
    spec, size = setup.spec, setup.spec.batch // 2
    while size and distributed.size() == 1:
        gc.collect()
        torch.cuda.empty_cache()
        # Two steps, since the optimiser allocates its state in the first one.
        small = set_up(replace(spec, batch=size, limit=2 * size), setup.seed, setup.data)
        task = methods.SearchTask(small.loader, spec.density, 1, setup.seed, setup.data.loss, precision=spec.precision)
        own = spec.resolved()
        short = {k: v for k, v in (("rewind", 0), ("search", 1), ("levels", 1), ("control", "none")) if hasattr(own, k)}
        try:
            run_search(small.model, task, methods.get(spec.method), replace(own, **short), small.roles)
        except torch.OutOfMemoryError:
            size //= 2
        except Collapse:  # both steps fitted into memory, so the collapse does not matter
            break
        else:
            break
    if size and distributed.size() == 1:
        return f"a batch of {size} would fit"
    return "make the batch smaller, or the network"
