"""The files of a finished run: ticket, gates, history; and the network that they give back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from crbg import measure, methods, models
from crbg.data.datasets import info
from crbg.data.loader import Data
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, spec_from
from crbg.gates.attach import weights
from crbg.masks.mask import Mask
from crbg.models.initial_weights import tensor_digest
from crbg.runs.readings import recalibration_images
from crbg.storage.atomic import read_json, write_bytes, write_text
from crbg.ticket import Ticket


def save_artifacts(
    spec: Spec,
    seed: int,
    data: Data,
    where: Path,
    model: nn.Module,
    initial: Mapping[str, Tensor],
    found: methods.SearchResult,
) -> str:
    """Write what `evaluate` and the reader need later: ticket, gates or trained weights, history; return the gates' digest."""
    tensors = {f"soft.{n}": t for n, t in found.soft.items()} | {f"scores.{n}": t for n, t in found.scores.items()}
    if found.changed:
        trained = {n: t for n, t in model.state_dict().items() if n in found.changed}
        tensors |= {f"changed.{n}": t for n, t in (trained | measure.running(model)).items()}
    tensors |= {f"start.{n}": t for n, t in (found.start or {}).items()}
    if found.running:
        tensors |= {f"running.{n}": t for n, t in found.running.items()} | {
            f"gain.{n}": t for n, t in found.gain.items()
        }
    statistics: dict[str, Tensor] = {}
    if found.start is None and measure.has_batch_norm(model):
        statistics = measure.running_statistics(model, recalibration_images(data), found.mask)
        tensors |= {f"statistics.{n}": t for n, t in statistics.items()}
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    for name, mask in (("mask", found.mask), ("exact", found.exact)):
        if mask is not None:
            tensors[name] = torch.frombuffer(bytearray(mask.pack()), dtype=torch.uint8)
    write_bytes(
        where / "gates.safetensors",
        save(tensors, {"changed" if found.start is None else "winning": json.dumps(found.changed)}),
    )
    if not found.changed:
        ticket = Ticket(
            found.mask, seed, spec.init, spec.scale, spec.model, data.in_shape, data.classes, tensor_digest(initial),
            dict(spec.model_args), statistics,
        )  # fmt: skip
        ticket.save(where / "ticket.safetensors")
    write_text(where / "history.jsonl", "".join(json.dumps(row) + "\n" for row in found.history))
    return tensor_digest(tensors)


def reopen(where: Path, model: nn.Module, expected: str | None = None) -> methods.SearchResult:
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
    found = methods.SearchResult(mask, exact, groups["scores"], groups["soft"], changed, start=start)
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
    model, _ = models.initial(
        spec.model, shape, entry.classes, spec.init, spec.scale, record["seed"], **spec.model_args
    )
    return reopen(where, model, record["digests"].get("gates")).apply(model)
