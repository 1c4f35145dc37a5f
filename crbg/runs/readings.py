"""What a record says of a ticket: accuracy in every reading, sanity controls, sparsity, cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crbg import measure, methods
from crbg.data.loader import Data, Part
from crbg.experiments.spec import Spec
from crbg.gates.attach import weights
from crbg.masks import controls
from crbg.masks.mask import Mask
from crbg.runs.setup import fresh
from crbg.search.run_search import guard_roles
from crbg.storage.atomic import finite
from crbg.training.hooks import Row

RECALIBRATION_IMAGES = 2000

EVALUATION_BATCH = 64  # of deep networks, channels last: larger batches leave a processor's cache

REINIT_OFFSET = 1_000_003  # seed + this draws the fresh weights of the reinit control


def describe(
    spec: Spec,
    seed: int,
    data: Data,
    model: nn.Module,
    initial: Mapping[str, Tensor],
    roles: Mapping[str, str],
    found: methods.SearchResult,
) -> dict[str, Any]:
    """Describe what a search found: roles, density of each layer, dead units, cost, and its validation accuracy."""
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
    picked = (
        sorted({round((i + 1) * len(history) / most) - 1 for i in range(most)} - {-1})
        if len(history) > most
        else range(len(history))
    )
    return [{k: finite(float(f"{v:.4g}")) for k, v in history[i].items()} for i in picked]


def evaluation_batch(spec: Spec) -> int:
    """Return the images in a batch of a reading; 0 leaves it to the part."""
    return EVALUATION_BATCH if spec.precision == "bf16" else 0


def read_all(
    spec: Spec, seed: int, data: Data, model: nn.Module, found: methods.SearchResult, part: Part
) -> dict[str, Any]:
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
    batch = evaluation_batch(spec)
    few = part.take(slice(spec.control_images)) if spec.control_images else part
    common = int(data.train.y.bincount().argmax())
    out: dict[str, Any] = {
        "readings": {},
        "images": len(part),
        "constant": finite(100.0 * float((part.y == common).double().mean())),
    }
    for reading, values in multipliers.items():
        count = sum(int((t != 0).sum()) for t in values.values())
        running = found.start is not None  # weights that trained with batch norm's own statistics are read with them
        same = reading != "binary" and isinstance(values, Mask) and values == found.mask  # as where a search landed
        # The number with the search's own statistics is a second pass over all images: deep runs read it for the ticket
        # alone.
        search = found if reading == "binary" or not spec.control_images else None
        read = out["readings"]["binary"] if same else accuracy(model, values, data, part, running, search, batch)
        out["readings"][reading] = {
            "density": finite(count / found.mask.total),
            **{k: v for k, v in read.items() if k != "density"},
        }
    if found.start is not None:
        untrained, _ = fresh(spec, data, seed)
        untrained.load_state_dict(found.start, strict=False)
        density = found.mask.density
        out["readings"]["untrained"] = {
            "density": finite(density),
            **accuracy(untrained, found.mask, data, part, batch=batch),
        }
    if found.soft and found.exact is not None:
        # A search that landed keeps mu > 1/2; one that missed its density was cut to it.
        out["density_missed"] = multipliers["half"] != found.mask
    if "trained" not in found.changed.values():
        others: dict[str, Mapping[str, Tensor]] = {"shuffle": controls.shuffle(found.mask, seed)}
        if found.scores:
            others["invert"] = controls.invert(found.scores, found.mask)
        out["sanity"] = {n: accuracy(model, m, data, few, batch=batch) for n, m in others.items()}
        law = replace(spec, init="kaiming_normal", scale=1.0) if spec.init == "imagenet" else spec
        other, _ = fresh(law, data, seed + REINIT_OFFSET)
        if spec.precision == "bf16":
            other.to(memory_format=torch.channels_last)
        out["sanity"]["reinit"] = accuracy(other, found.mask, data, few, batch=batch)
        if spec.control_images:
            out["sanity_images"] = len(few)
    return out


def recalibration_images(data: Data) -> Iterator[Tensor]:
    """Give the training images from which statistics are estimated again."""
    return (x for x, _ in data.train.take(slice(RECALIBRATION_IMAGES)).batches(200))


def accuracy(
    model: nn.Module,
    multipliers: Mapping[str, Tensor],
    data: Data,
    part: Part,
    running: bool = False,
    search: methods.SearchResult | None = None,
    batch: int = 0,
) -> dict[str, float | None]:
    """Measure a model times its multipliers on a part, in %, with batch norm's statistics estimated again.

    Beside it, where the `search` left running statistics, the number with those and with the gains by which they came
    about. Where the model's own are the `running` ones of a finished training, the number with those comes first.
    """
    if not measure.has_batch_norm(model):
        return {"accuracy": finite(measure.accuracy(model, part.batches(batch), multipliers))}
    with measure.recalibrated(model, recalibration_images(data), multipliers):
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
