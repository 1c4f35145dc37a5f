"""Write the files of a finished run (ticket, gates, history), and rebuild its network from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from crbg import measure, methods, models
from crbg.data.datasets import info
from crbg.errors import CrbgError
from crbg.experiments.record import Record
from crbg.experiments.spec import spec_from
from crbg.gates.attach import weights
from crbg.masks.mask import Mask
from crbg.models.initial_weights import tensor_digest
from crbg.runs.file_size import saved_bytes, stored_bytes
from crbg.runs.readings import recalibration_images
from crbg.runs.setup import RunSetup
from crbg.search.roles import CODED_ROLES
from crbg.storage.atomic import read_json, write_bytes, write_text
from crbg.ticket import Ticket


def save_artifacts(setup: RunSetup, found: methods.SearchResult, where: Path, initial: str) -> tuple[str, int]:
    """Write the files of a run into its folder: gates or trained weights, ticket, history.

    `initial` is the digest of the initial tensors.

    Returns:
        The digest of all tensors in the gate file, and the size in bytes of the result (`crbg.runs.file_size`), for
        the record.
    """
    spec, data, model = setup.spec, setup.data, setup.model
    kinds = {"soft": found.soft, "scores": found.scores, "start": found.start or {}, "running": found.running or {}}
    if found.changed:
        trained = {n: t for n, t in model.state_dict().items() if n in found.changed}
        kinds["changed"] = trained | measure.running(model)
    if found.running:
        kinds["gain"] = found.gain
    statistics: dict[str, Tensor] = {}
    if found.start is None and measure.has_batch_norm(model):
        statistics = kinds["statistics"] = measure.running_statistics(model, recalibration_images(data), found.mask)
    tensors = {f"{kind}.{n}": t.detach().cpu().contiguous() for kind, ts in kinds.items() for n, t in ts.items()}
    for name, mask in (("mask", found.mask), ("exact", found.exact)):
        if mask is not None:
            tensors[name] = torch.frombuffer(bytearray(mask.pack()), dtype=torch.uint8)
    about = {"changed" if found.start is None else "winning": json.dumps(found.changed)}
    write_bytes(where / "gates.safetensors", save(tensors, about))
    if set(found.changed.values()) - CODED_ROLES:
        size = stored_bytes(model, found.mask, spec.weight_bits)
    else:
        ticket = Ticket(
            found.mask,
            setup.seed,
            spec.init,
            spec.scale,
            spec.model,
            data.in_shape,
            data.classes,
            initial,
            dict(spec.model_args),
            statistics,
            factors=found.factors,
        )
        ticket.save(where / "ticket.safetensors", pack="bits")
        size = len(ticket.to_bytes()) - saved_bytes(found)
    write_text(where / "history.jsonl", "".join(json.dumps(row) + "\n" for row in found.history))
    return tensor_digest(tensors), size


def reopen(where: Path, model: nn.Module, expected: str | None = None) -> methods.SearchResult:
    """Read the gate file of a run, and load trained and redrawn tensors into a model of the same shapes.

    Args:
        where: Folder of the run.
        model: A model built by `initial_model`.
        expected: Digest of the gate file according to the record of the run; None for older records, which lack it.

    Raises:
        CrbgError: the file is missing or damaged, or its digest differs from `expected`.
    """
    path = where / "gates.safetensors"
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            changed = json.loads(about.get("winning", about.get("changed", "{}")))
        if expected and tensor_digest(tensors) != expected:
            raise CrbgError(f"the digest of {path} differs from the recorded one; repeat the run")
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
        raise CrbgError(f"{path} cannot be read ({error}); repeat the run before evaluating it") from None
    model.load_state_dict(groups["changed"], strict=False)
    start = groups["start"] if "winning" in about else None
    found = methods.SearchResult(mask, exact, groups["scores"], groups["soft"], changed, start=start)
    found.running, found.gain, found.statistics = groups["running"], groups["gain"], groups["statistics"]
    return found


def rebuild(where: Path | str) -> nn.Module:
    """Build the network of a finished run with its ticket applied, from the folder of the run.

    Strong tickets are rebuilt from their seed, others from the tensors in the gate file.

    Raises:
        CrbgError: the folder contains no run, its search collapsed, or its files are damaged.
    """
    where = Path(where).expanduser()
    path = where / "record.json"
    record = Record.from_json(read_json(path), str(path))
    if not record.ok:
        raise CrbgError(f"{where} contains no ticket: {record.reason or record.status}")
    if (where / "ticket.safetensors").exists():
        return Ticket.load(where / "ticket.safetensors").model()
    spec = spec_from(record.spec, str(path))
    entry = info(spec.data)
    shape = (entry.shape[0], spec.size, spec.size) if spec.size else entry.shape
    model, _ = models.initial(spec.model, shape, entry.classes, spec.init, spec.scale, record.seed, **spec.model_args)
    return reopen(where, model, record.digests.gates).apply(model)
