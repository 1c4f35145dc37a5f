"""Spec + seed -> files. The single entry that the workflow, the command line and the tests share.

`results/runs/<slug>/seed<k>/` holds record.json (deterministic), provenance.json (times, device, versions), ticket and gates
(safetensors), history.jsonl, evaluation.json once the test set was opened, and a checkpoint while the run goes on.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

import crbg
from crbg import attempts, gate_kernels, lock, measure, methods, models, parallel, sanity
from crbg.attach import weights
from crbg.data import info
from crbg.data.images import Data, Feed, Part, load
from crbg.device import check_precision
from crbg.errors import CrbgError, GpuFullError, WriteError
from crbg.files import cannot_write, finite, read_json, write_bytes, write_json, write_text
from crbg.fit import Clock, Collapse, OutOfTime, Row
from crbg.init import tensor_digest, unit_draw
from crbg.mask import Mask
from crbg.shelf import Shelf
from crbg.spec import Spec, as_dict, folder, spec_from
from crbg.ticket import Ticket

SCHEMA = 1
RECALIBRATION_IMAGES = 2000
EVALUATION_BATCH = 64  # of deep networks, channels last: larger batches leave a processor's cache
REINIT_OFFSET = 1_000_003  # seed + this draws the fresh weights of the reinit control


@dataclass
class Bench:
    """Where runs happen: device, data already loaded, folders. Holds no state that a result depends on."""

    results: Path
    data_dir: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loaded: dict[str, Data] = field(default_factory=dict)

    def data(self, name: str, download: bool = True) -> Data:
        """Load a data set once for all runs of this process."""
        if name not in self.loaded:
            self.loaded[name] = load(name, self.data_dir, download=download).to(self.device)
        return self.loaded[name]


def training_part(spec: Spec, data: Data) -> Part:
    """Choose the images that a search may see."""
    part = data.train
    if spec.fit_on == "all":
        part = part.join(data.validation)
    return part.take(slice(spec.limit)) if spec.limit else part


def feed_of(spec: Spec, data: Data, seed: int) -> Feed:
    """Make the minibatches of a run."""
    return Feed(training_part(spec, data), spec.batch, seed, spec.flip, spec.crop)


def fresh(spec: Spec, data: Data, seed: int) -> tuple[nn.Module, dict[str, str]]:
    """Build the network with its initial tensors, and say what role each tensor has."""
    model, roles = models.initial(spec.model, data.in_shape, data.classes, spec.init, spec.scale, seed, **spec.model_args)
    return model.to(data.train.device), roles


def shelf_of(spec: Spec, seed: int, data: Data, results: Path, clock: Clock) -> Shelf:
    """Find the parts that this run shares with those of other methods, densities and options on its network, data and seed."""
    shared = replace(spec, density=None, method="random", options={}).canonical()
    machine = {"device": data.train.device.type, "torch": torch.__version__}
    return Shelf(results / "shelf", {"spec": shared, "seed": seed, "data": data.digest, **machine}, clock)


def draw_digest(spec: Spec, model: nn.Module, seed: int) -> str:
    """Digest of the unit draw: runs that differ only in the scale of their weights share it, and may be paired."""
    if spec.init == "imagenet":
        return tensor_digest(weights(model))
    draws = {n: torch.from_numpy(unit_draw(n, tuple(w.shape), spec.init, seed)) for n, w in weights(model).items()}
    return tensor_digest(draws)


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
            if parallel.size() > 1:
                parallel.told((spec, seed))
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
    while order := parallel.told():
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
    if parallel.size() > 1 and isinstance(error, RuntimeError):
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
    task = methods.Task(
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
    if not parallel.first():
        return {}
    searched = time.monotonic() - started + clock.earlier
    searched_cpu = time.process_time() - started_cpu + clock.earlier_cpu
    if found is not None:
        if found.running is None:
            found.running = measure.running(model)
        record |= _describe(spec, seed, data, model, initial, roles, found)
        record["digests"]["mask"] = found.mask.digest()
        record["digests"]["gates"] = _keep(spec, seed, data, where, model, initial, found)
    empty = [n for n, c in record.get("layers", {}).items() if c["kept"] == 0]
    if empty and found is not None and found.start is None:  # trained weights may do without a layer that a shortcut passes by
        record |= {"status": "collapse", "reason": f"nothing is left of {', '.join(empty)}"}
    write_json(where / "provenance.json", _provenance(bench.device, searched, searched_cpu, time.monotonic() - started))
    write_json(where / "record.json", record)
    for leftover in where.glob("checkpoint.*"):
        leftover.unlink()
    return record


def _advice(spec: Spec, seed: int, data: Data) -> str:
    """Say which batch size would fit, by trying one step of the search with ever smaller ones."""
    size = spec.batch // 2
    while size and parallel.size() == 1:
        gc.collect()
        torch.cuda.empty_cache()
        model, _ = fresh(spec, data, seed)
        one = feed_of(replace(spec, batch=size, limit=2 * size), data, seed)  # the optimiser's state is there from the second step on
        task = methods.Task(one, spec.density, 1, seed, nn.functional.cross_entropy, precision=spec.precision)
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
    return f"a batch of {size} would fit" if size and parallel.size() == 1 else "make the batch smaller, or the network"


def _describe(
    spec: Spec,
    seed: int,
    data: Data,
    model: nn.Module,
    initial: Mapping[str, Tensor],
    roles: Mapping[str, str],
    found: methods.Found,
) -> dict[str, Any]:
    roles = {**roles, **found.changed}
    guard_roles(initial, dict(model.state_dict()), roles)
    if not found.changed:
        model.load_state_dict(dict(initial))
    few = data.validation.take(slice(spec.control_images)) if spec.control_images else data.validation
    out: dict[str, Any] = {
        "roles": {role: sorted(n for n, r in roles.items() if r == role) for role in sorted(set(roles.values()))},
        "gated": found.mask.total,
        "parameters": sum(p.numel() for p in model.parameters()),
        "density": finite(found.mask.density),
        "layers": found.mask.counts(),
        "depth": [n for n in weights(model) if n in found.mask],
        "dead_units": measure.dead_units(found.mask),
        "silent_units": measure.silent_units(model, few.batches(), found.mask),
        "flops": measure.flops(model, next(iter(data.validation.batches(1)))[0], found.mask),
    }
    if spec.model.startswith("lenet-"):
        out["effective_density"] = finite(measure.alive(found.mask).density)
    if per_head := measure.heads(model, found.mask):
        out["heads"] = per_head
    if found.anatomy:
        out["anatomy"] = found.anatomy | {"epochs": _thin(found.history)}
    if found.soft:
        out["shares"] = {n: {k: finite(v) for k, v in s.items()} for n, s in measure.shares(found.soft).items()}
    if spec.fit_on == "train":
        out["validation"] = read_all(spec, seed, data, model, found, data.validation)
    return out


def _thin(history: list[Row], most: int = 12) -> list[dict[str, float | None]]:
    """Keep the last of at most so many rows, evenly spread, rounded: what a figure needs of the course of a search."""
    picked = sorted({round((i + 1) * len(history) / most) - 1 for i in range(most)} - {-1}) if len(history) > most else range(len(history))
    return [{k: finite(float(f"{v:.4g}")) for k, v in history[i].items()} for i in picked]


def guard_roles(before: Mapping[str, Tensor], after: Mapping[str, Tensor], roles: Mapping[str, str]) -> None:
    """Fail if any tensor changed by a single byte whose role does not allow it."""
    for name, old in before.items():
        allowed = roles.get(name, "frozen") in ("trained", "redrawn", "recalibrated")
        if not allowed and not torch.equal(old.cpu().reshape(-1).view(torch.uint8), after[name].cpu().reshape(-1).view(torch.uint8)):
            raise CrbgError(f"the search changed {name!r}, whose role is {roles.get(name, 'frozen')!r}: its ticket is not a strong one")


def read_all(spec: Spec, seed: int, data: Data, model: nn.Module, found: methods.Found, part: Part) -> dict[str, Any]:
    """Measure accuracy on one part in every reading, with its density, and the sanity controls of the binary ticket.

    `model` holds the initial tensors (or the trained ones of a dense reference).
    """
    multipliers: dict[str, Mapping[str, Tensor]] = {"binary": found.mask}
    if found.exact is not None:
        multipliers["exact"] = found.exact
    if found.soft:
        multipliers |= {
            "mean": found.soft,
            "open": Mask({n: z > 0 for n, z in found.soft.items()}),
            "half": Mask({n: z > 0.5 for n, z in found.soft.items()}),
        }
    if spec.precision == "bf16":
        model.to(memory_format=torch.channels_last)  # as in the search; measured in fp32 all the same
    batch = EVALUATION_BATCH if spec.precision == "bf16" else 0
    few = part.take(slice(spec.control_images)) if spec.control_images else part
    common = int(data.train.y.bincount().argmax())
    out: dict[str, Any] = {"readings": {}, "images": len(part), "constant": finite(100.0 * float((part.y == common).double().mean()))}
    for reading, values in multipliers.items():
        count = sum(int((t != 0).sum()) for t in values.values())
        running = found.start is not None  # weights that trained with batch norm's own statistics are read with them
        same = reading != "binary" and isinstance(values, Mask) and values == found.mask  # as where a search landed
        # The number with the search's own statistics is a second pass over all images: deep runs read it for the ticket alone.
        search = found if reading == "binary" or not spec.control_images else None
        read = out["readings"]["binary"] if same else accuracy(model, values, data, part, running, search, batch)
        out["readings"][reading] = {"density": finite(count / found.mask.total), **{k: v for k, v in read.items() if k != "density"}}
    if found.start is not None:
        untrained, _ = fresh(spec, data, seed)
        untrained.load_state_dict(found.start, strict=False)
        density = found.mask.density
        out["readings"]["untrained"] = {"density": finite(density), **accuracy(untrained, found.mask, data, part, batch=batch)}
    if found.soft and found.exact is not None:
        # A search that landed keeps mu > 1/2; one that missed its density was cut to it.
        out["density_missed"] = multipliers["half"] != found.mask
    if "trained" not in found.changed.values():
        controls: dict[str, Mapping[str, Tensor]] = {"shuffle": sanity.shuffle(found.mask, seed)}
        if found.scores:
            controls["invert"] = sanity.invert(found.scores, found.mask)
        out["sanity"] = {n: accuracy(model, m, data, few, batch=batch) for n, m in controls.items()}
        law = replace(spec, init="kaiming_normal", scale=1.0) if spec.init == "imagenet" else spec
        other, _ = fresh(law, data, seed + REINIT_OFFSET)
        if spec.precision == "bf16":
            other.to(memory_format=torch.channels_last)
        out["sanity"]["reinit"] = accuracy(other, found.mask, data, few, batch=batch)
        if spec.control_images:
            out["sanity_images"] = len(few)
    return out


def _images(data: Data) -> Iterator[Tensor]:
    """Give the training images from which statistics are estimated again."""
    return (x for x, _ in data.train.take(slice(RECALIBRATION_IMAGES)).batches(200))


def accuracy(
    model: nn.Module,
    multipliers: Mapping[str, Tensor],
    data: Data,
    part: Part,
    running: bool = False,
    search: methods.Found | None = None,
    batch: int = 0,
) -> dict[str, float | None]:
    """Measure a model times its multipliers on a part, in %, with batch norm's statistics estimated again.

    Beside it, where the `search` left running statistics, the number with those and with the gains by which they came about. Where the
    model's own are the `running` ones of a finished training, the number with those comes first.
    """
    if not measure.has_batch_norm(model):
        return {"accuracy": finite(measure.accuracy(model, part.batches(batch), multipliers))}
    with measure.recalibrated(model, _images(data), multipliers):
        again = finite(measure.accuracy(model, part.batches(batch), multipliers))
    if running:
        return {"accuracy": finite(measure.accuracy(model, part.batches(batch), multipliers)), "recalibrated": again}
    if search is None or not search.running:
        return {"accuracy": again}
    own = measure.running(model)
    model.load_state_dict(search.running, strict=False)
    grown = {n: m * search.gain[n].to(m.device) if n in search.gain else m for n, m in (multipliers or {}).items()}
    plain = finite(measure.accuracy(model, part.batches(batch), grown))
    model.load_state_dict(own, strict=False)
    return {"accuracy": again, "with_search_statistics": plain}


def _keep(spec: Spec, seed: int, data: Data, where: Path, model: nn.Module, initial: Mapping[str, Tensor], found: methods.Found) -> str:
    """Write what `evaluate` and the reader need later: ticket, gates or trained weights, history; return the gates' digest."""
    tensors = {f"soft.{n}": t for n, t in found.soft.items()} | {f"scores.{n}": t for n, t in found.scores.items()}
    if found.changed:
        trained = {n: t for n, t in model.state_dict().items() if n in found.changed}
        tensors |= {f"changed.{n}": t for n, t in (trained | measure.running(model)).items()}
    tensors |= {f"start.{n}": t for n, t in (found.start or {}).items()}
    if found.running:
        tensors |= {f"running.{n}": t for n, t in found.running.items()} | {f"gain.{n}": t for n, t in found.gain.items()}
    statistics: dict[str, Tensor] = {}
    if found.start is None and measure.has_batch_norm(model):
        statistics = measure.running_statistics(model, _images(data), found.mask)
        tensors |= {f"statistics.{n}": t for n, t in statistics.items()}
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    for name, mask in (("mask", found.mask), ("exact", found.exact)):
        if mask is not None:
            tensors[name] = torch.frombuffer(bytearray(mask.pack()), dtype=torch.uint8)
    write_bytes(where / "gates.safetensors", save(tensors, {"changed" if found.start is None else "winning": json.dumps(found.changed)}))
    if not found.changed:
        ticket = Ticket(
            found.mask, seed, spec.init, spec.scale, spec.model, data.in_shape, data.classes, tensor_digest(initial),
            dict(spec.model_args), statistics,
        )  # fmt: skip
        ticket.save(where / "ticket.safetensors")
    write_text(where / "history.jsonl", "".join(json.dumps(row) + "\n" for row in found.history))
    return tensor_digest(tensors)


def reopen(where: Path, model: nn.Module, expected: str | None = None) -> methods.Found:
    """Read back what a search found, for a model of the same shapes; trained and redrawn tensors are loaded into it.

    `expected` is the digest in the run's record, which older records lack.
    """
    path = where / "gates.safetensors"
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            changed = json.loads(about.get("winning", about.get("changed", "{}")))
        if expected and tensor_digest(tensors) != expected:
            raise CrbgError(f"{path} is not the one its record names; run the cell again")
        shapes = {n: tuple(w.shape) for n, w in weights(model).items()}
        names = ("soft", "scores", "changed", "start", "running", "gain", "statistics")
        groups: dict[str, dict[str, Tensor]] = {n: {} for n in names}
        for name, t in tensors.items():
            head, _, rest = name.partition(".")
            if head in groups:
                groups[head][rest] = t
        some = groups["scores"] or groups["soft"]
        gated = {n: shapes[n] for n in some} if some else shapes
        mask = Mask.unpack(tensors["mask"].numpy().tobytes(), gated)
        exact = Mask.unpack(tensors["exact"].numpy().tobytes(), gated) if "exact" in tensors else None
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CrbgError(f"{path} cannot be read ({error}); run the cell again before it is evaluated") from None
    model.load_state_dict(groups["changed"], strict=False)
    start = groups["start"] if "winning" in about else None
    found = methods.Found(mask, exact, groups["scores"], groups["soft"], changed, start=start)
    found.running, found.gain, found.statistics = groups["running"], groups["gain"], groups["statistics"]
    return found


def rebuild(where: Path | str) -> nn.Module:
    """Give the network of a finished run with its ticket in it, by the run's folder: strong ones from the seed, others from their tensors.

    Raises:
        CrbgError: no run lies there, its search collapsed, or its files are damaged.
    """
    where = Path(where)
    record = read_json(where / "record.json")
    if record["status"] != "ok":
        raise CrbgError(f"{where} holds no ticket: {record.get('reason', record['status'])}")
    if (where / "ticket.safetensors").exists():
        return Ticket.load(where / "ticket.safetensors").model()
    spec = spec_from(record["spec"], str(where / "record.json"))
    entry = info(spec.data)
    shape = (entry.shape[0], spec.size, spec.size) if spec.size else entry.shape
    model, _ = models.initial(spec.model, shape, entry.classes, spec.init, spec.scale, record["seed"], **spec.model_args)
    return reopen(where, model, record["digests"].get("gates")).apply(model)


def evaluate(spec: Spec, seed: int, bench: Bench) -> dict[str, Any]:
    """Open the test set for one finished run, once: a second call returns the evaluation that is there.

    Raises:
        CrbgError: the run is not finished, or its mask is not the one its record names.
    """
    where = folder(bench.results, spec, seed)
    record = read_json(where / "record.json")
    if (where / "evaluation.json").exists():
        return read_json(where / "evaluation.json", "evaluation")
    if record["status"] != "ok":
        return record
    data = bench.data(spec.data).sized(spec.size)
    model, _ = fresh(spec, data, seed)
    found = reopen(where, model, record["digests"].get("gates"))
    if found.mask.digest() != record["digests"]["mask"]:
        raise CrbgError(f"{where}: the mask is not the one its record names; run the cell again")
    out: dict[str, Any] = {"digest": spec.digest(), "seed": seed, "mask": found.mask.digest(), "data": data.digest}
    out["test"] = read_all(spec, seed, data, model, found, data.test)
    if len(data.lossy_test):
        kept = torch.ones(len(data.test), dtype=torch.bool)
        kept[data.lossy_test] = False
        exact = data.test.take(kept)
        out["test_without_lossy"] = {
            "images": len(exact),
            "binary": accuracy(
                model, found.mask, data, exact, found.start is not None, found, EVALUATION_BATCH if spec.precision == "bf16" else 0
            ),
        }
    write_json(where / "evaluation.json", out)
    return out


def _provenance(device: torch.device, searched: float, searched_cpu: float, total: float) -> dict[str, Any]:
    import resource

    gpu = device.type == "cuda"
    return {
        "search_seconds": round(searched, 3),
        "search_cpu_seconds": round(searched_cpu, 3),
        "seconds": round(total, 3),
        "peak_memory_mb": round(
            torch.cuda.max_memory_allocated(device) / 2**20 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
        "device": torch.cuda.get_device_name(device) if gpu else cpu_name(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "processes": parallel.size(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "gates": "compiled" if gate_kernels.compiled() else "torch",
        "versions": {"crbg": crbg.__version__, "torch": torch.__version__.split("+")[0], "python": platform.python_version()},
        "revision": revision(),
    }


def cpu_name() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def revision() -> str:
    """Return the git revision of the source, with `+` where it has uncommitted changes, or `unknown` outside git."""
    here = Path(__file__).parent
    try:
        run = {"cwd": here, "capture_output": True, "text": True, "timeout": 10, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "--", str(here)], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CRBG_REVISION", "unknown")
    return str(head) + ("+" if dirty else "")
