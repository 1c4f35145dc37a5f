"""Spec + seed -> files. The single entry that the workflow, the command line and the tests share.

`results/runs/<slug>/seed<k>/` holds record.json (deterministic), provenance.json (times, device, versions), ticket and
gates (safetensors), history.jsonl, evaluation.json once the test set was opened, and a checkpoint while the run goes
on.
"""

from __future__ import annotations

import gc
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crbg import measure, methods
from crbg.data.loader import Data
from crbg.errors import CrbgError, GpuFullError, WriteError
from crbg.experiments import attempts
from crbg.experiments.spec import Spec, as_dict, folder
from crbg.models.initial_weights import tensor_digest
from crbg.runs.artifacts import save_artifacts
from crbg.runs.provenance import provenance, revision
from crbg.runs.readings import describe
from crbg.runs.setup import Bench, draw_digest, feed_of, fresh, shelf_of
from crbg.storage import lock
from crbg.storage.atomic import cannot_write, read_json, write_json
from crbg.training import distributed
from crbg.training.clock import Clock, Collapse, OutOfTime
from crbg.training.device import check_precision

SCHEMA = 1


def execute(spec: Spec, seed: int, bench: Bench, clock: Clock | None = None) -> dict[str, Any]:
    """Do one run, or return its record if it is there already. What becomes of the attempt is noted in the run's folder.

    Raises:
        OutOfTime: the clock's deadline came first; call again to go on.
        HeldError: another process works on the run.
        WriteError: the results' disk is full or read-only.
        CrbgError: the search touched a tensor that it may not touch, or what it was given is wrong.
    """
    where = folder(bench.results, spec, seed)
    done = where / "record.json"
    if done.exists():
        return read_json(done)
    try:
        with lock.hold(where):
            if done.exists():
                return read_json(done)
            attempts.begin(where, device=str(bench.device), revision=revision())
            if distributed.size() > 1:
                distributed.broadcast((spec, seed))
            try:
                record = _search(spec, seed, bench, clock or Clock(), where)
            except BaseException as error:
                with suppress(OSError):  # the disk may be what failed
                    attempts.end(where, _outcome(error), error)
                raise
            attempts.end(where, attempts.DONE)
            return record
    except OSError as error:
        raise cannot_write(where, error) from None


def follow(bench: Bench, clock: Clock) -> None:
    """Take part in the runs that the first process of several does, until it has no more."""
    while order := distributed.broadcast():
        spec, seed = order
        with suppress(OutOfTime):
            _search(spec, seed, bench, clock, folder(bench.results, spec, seed))


def _outcome(error: BaseException) -> str:
    """Tell what another attempt could mend from what it could not."""
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
        return attempts.KILLED  # the others vanished from a collective call: a node or a process died
    return attempts.CODE if isinstance(error, Exception) else attempts.KILLED


def _search(spec: Spec, seed: int, bench: Bench, clock: Clock, where: Path) -> dict[str, Any]:
    check_precision(spec.precision, bench.device)
    data, started, started_cpu = bench.data(spec.data).sized(spec.size), time.monotonic(), time.process_time()
    feed = feed_of(spec, data, seed)
    model, roles = fresh(spec, data, seed)
    initial = {n: t.clone() for n, t in model.state_dict().items()}
    checkpoint = where / "checkpoint.pt"
    steps = round(methods.work(spec.method, spec.resolved(), spec.density, spec.epochs) * len(feed))
    clock.whole = steps
    task = methods.SearchTask(
        feed, spec.density, spec.epochs, seed, nn.functional.cross_entropy, checkpoint, clock, spec.precision,
        lambda other: fresh(spec, data, other)[0].state_dict(), shelf_of(spec, seed, data, bench.results, clock),
    )  # fmt: skip
    record: dict[str, Any] = {
        "schema": SCHEMA, "digest": spec.digest(), "spec": as_dict(spec), "version": methods.get(spec.method).VERSION,
        "seed": seed, "status": "ok", "steps": steps, "train_images": len(feed.part),
        "digests": {
            "initial": tensor_digest(initial), "draw": draw_digest(spec, model, seed), "data": data.digest,
            "order": feed.digest(),
        },
    }  # fmt: skip
    if any(data.lossy.values()):
        record["lossy_images"] = dict(data.lossy)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    found, full = None, ""
    try:
        found = methods.get(spec.method).find(model, task, spec.resolved())
    except Collapse as outcome:
        record |= {"status": "collapse", "reason": str(outcome)}
    except torch.OutOfMemoryError as error:
        full = str(error).split(". ")[0]
    if full:  # outside the handler, whose traceback would keep the search's tensors
        raise GpuFullError(f"{spec.slug()}: the GPU's memory is full ({full}); {_advice(spec, seed, data)}")
    if not distributed.first():
        return {}
    searched = time.monotonic() - started + clock.earlier
    searched_cpu = time.process_time() - started_cpu + clock.earlier_cpu
    if found is not None:
        if found.running is None:
            found.running = measure.running(model)
        record |= describe(spec, seed, data, model, initial, roles, found)
        record["digests"]["mask"] = found.mask.digest()
        record["digests"]["gates"] = save_artifacts(spec, seed, data, where, model, initial, found)
    empty = [n for n, c in record.get("layers", {}).items() if c["kept"] == 0]
    if (
        empty and found is not None and found.start is None
    ):  # trained weights may do without a layer that a shortcut passes by
        record |= {"status": "collapse", "reason": f"nothing is left of {', '.join(empty)}"}
    write_json(where / "provenance.json", provenance(bench.device, searched, searched_cpu, time.monotonic() - started))
    write_json(where / "record.json", record)
    for leftover in where.glob("checkpoint.*"):
        leftover.unlink()
    return record


def _advice(spec: Spec, seed: int, data: Data) -> str:
    """Say which batch size would fit, by trying one step of the search with ever smaller ones."""
    size = spec.batch // 2
    while size and distributed.size() == 1:
        gc.collect()
        torch.cuda.empty_cache()
        model, _ = fresh(spec, data, seed)
        one = feed_of(
            replace(spec, batch=size, limit=2 * size), data, seed
        )  # the optimiser's state is there from the second step on
        task = methods.SearchTask(one, spec.density, 1, seed, nn.functional.cross_entropy, precision=spec.precision)
        own = spec.resolved()
        short = {k: v for k, v in (("rewind", 0), ("search", 1), ("levels", 1), ("control", "none")) if hasattr(own, k)}
        try:
            methods.get(spec.method).find(model, task, replace(own, **short))
        except torch.OutOfMemoryError:
            size //= 2
        except Collapse:  # it ran, which is all that was asked
            break
        else:
            break
    return (
        f"a batch of {size} would fit" if size and distributed.size() == 1 else "make the batch smaller, or the network"
    )
