"""Measure a ticket for its record: the metric of every reading, sanity controls, sparsity, cost.

A reading is a way to turn gates into multipliers of the weights (see docs/vocabulary.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crbg import measure, methods
from crbg.data.metrics import BITS, MSE
from crbg.data.parts import Data, Part
from crbg.experiments.record import Count, Measurement, Reading
from crbg.experiments.spec import Spec
from crbg.gates.attach import weights
from crbg.masks import controls
from crbg.masks.mask import Mask
from crbg.measure.calibration import fitted_temperature
from crbg.runs.setup import RunSetup, initial_model
from crbg.storage.atomic import finite
from crbg.training.hooks import Row

RECALIBRATION_IMAGES = 2000
TEMPERATURE_EXAMPLES = 64
EVALUATION_BATCH = 64  # for deep networks in channels-last format: larger batches do not fit into a CPU's cache
REINIT_OFFSET = 1_000_003  # added to the seed to draw the weights of the control `reinit`
EPOCHS_KEPT = 12  # number of rows of the training history in a record, for figures of the search's progress


def describe_ticket(setup: RunSetup, found: methods.SearchResult) -> dict[str, Any]:
    """Measure the ticket that a search found.

    Returns:
        Fields of the `Record`: roles, densities, dead and silent units, cost, and the results on validation unless the
        validation images were used for training.
    """
    spec, data, model = setup.spec, setup.data, setup.model
    roles = {**setup.roles, **found.changed}
    few = data.validation.take(slice(spec.control_images)) if spec.control_images else data.validation
    out: dict[str, Any] = {
        "roles": {role: sorted(n for n, r in roles.items() if r == role) for role in sorted(set(roles.values()))},
        "gated": found.mask.total,
        "parameters": sum(p.numel() for p in model.parameters()),
        "density": finite(found.mask.density),
        "layers": {n: Count(**count) for n, count in found.mask.counts().items()},
        "depth": [n for n in weights(model) if n in found.mask],
        "dead_units": measure.dead_units(found.mask),
        "silent_units": measure.silent_units(model, few.batches(), found.mask),
        "flops": measure.flops(model, next(iter(data.validation.batches(1)))[0], found.mask),
    }
    if spec.model.startswith("lenet-"):
        out["effective_density"] = finite(measure.alive(found.mask).density)
    if per_head := measure.heads(model, found.mask):
        out["heads"] = per_head
    if found.anatomy or spec.watch_images:
        out["anatomy"] = found.anatomy | {"epochs": _thinned(found.history)}
    if found.soft:
        out["shares"] = {n: {k: finite(v) for k, v in s.items()} for n, s in measure.shares(found.soft).items()}
    if spec.fit_on == "train":
        out["validation"] = read_all(setup, found, data.validation)
    return out


def _thinned(history: list[Row]) -> list[dict[str, float | None]]:
    """Return at most `EPOCHS_KEPT` evenly spread rows including the last one, rounded to four significant digits."""
    picked = set(range(len(history)))
    if len(history) > EPOCHS_KEPT:
        picked = {round((i + 1) * len(history) / EPOCHS_KEPT) - 1 for i in range(EPOCHS_KEPT)} - {-1}
    return [{k: finite(float(f"{v:.4g}")) for k, v in history[i].items()} for i in sorted(picked)]


def evaluation_batch(spec: Spec) -> int:
    """Return the batch size for measuring accuracy; 0 means the default of `ImagePart.batches`."""
    return EVALUATION_BATCH if spec.precision == "bf16" else 0


def read_all(setup: RunSetup, found: methods.SearchResult, part: Part) -> Measurement:
    """Measure the metric of every reading and of the sanity controls of the binary ticket on one part of the data.

    The model of `setup` must contain the initial tensors, or the trained tensors if the method trains weights.
    """
    spec, data, model = setup.spec, setup.data, setup.model
    if spec.precision == "bf16":
        model.to(memory_format=torch.channels_last)  # as in the search; accuracy is still measured in fp32
    multipliers = _readings(found)
    return Measurement(
        readings=_read_each(setup, found, part, multipliers),
        images=len(part),
        constant=finite(constant(data, part)),
        naive={name: value for name, of in data.naive.items() if (value := finite(of(part))) is not None} or None,
        # If the search reached its target density, the ticket is mu > 1/2; otherwise it was cut to the top k.
        density_missed=multipliers["half"] != found.mask if found.soft and found.exact is not None else None,
        **_controls(setup, found, part),
    )


def _readings(found: methods.SearchResult) -> dict[str, Mapping[str, Tensor]]:
    """Return the multipliers of the weights in each reading of a ticket."""
    out: dict[str, Mapping[str, Tensor]] = {"binary": found.mask}
    if found.exact is not None:
        out["exact"] = found.exact
    if found.soft:
        out |= {
            "mean": found.soft,
            "open": Mask({n: z > 0 for n, z in found.soft.items()}),
            "half": Mask({n: z > 0.5 for n, z in found.soft.items()}),
        }
    return out


def _read_each(
    setup: RunSetup, found: methods.SearchResult, part: Part, multipliers: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Reading]:
    """Measure each reading. A mask that equals the ticket is not measured again."""
    spec, data, model = setup.spec, setup.data, setup.model
    batch = evaluation_batch(spec)
    trained = found.start is not None  # under the mask; then measured with the model's own batch-norm statistics
    out: dict[str, Reading] = {}
    for name, values in multipliers.items():
        if name != "binary" and isinstance(values, Mask) and values == found.mask:
            read = out["binary"]
        else:
            # Measuring with the statistics of the search takes a second pass over all images. Runs with a limit on the
            # images of the controls, which are those of deep networks, measure only the ticket in this way.
            search = found if name == "binary" or not spec.control_images else None
            read = measured(model, values, data, part, trained, search, batch)
        count = sum(int((t != 0).sum()) for t in values.values())
        out[name] = replace(read, density=finite(count / found.mask.total))
    if found.start is not None:
        untrained, _ = initial_model(spec, data, setup.seed)
        untrained.load_state_dict(found.start, strict=False)
        read = measured(untrained, found.mask, data, part, batch=batch)
        out["untrained"] = replace(read, density=finite(found.mask.density))
    return out


def _controls(setup: RunSetup, found: methods.SearchResult, part: Part) -> dict[str, Any]:
    """Measure the sanity controls of a ticket on untrained weights; return no controls for trained weights."""
    if "trained" in found.changed.values():
        return {}
    spec, data, seed = setup.spec, setup.data, setup.seed
    batch = evaluation_batch(spec)
    few = part.take(slice(spec.control_images)) if spec.control_images else part
    masks: dict[str, Mask] = {"shuffle": controls.shuffle(found.mask, seed)}
    if found.scores:
        masks["invert"] = controls.invert(found.scores, found.mask)
    out = {n: measured(setup.model, mask, data, few, batch=batch) for n, mask in masks.items()}
    law = replace(spec, init="kaiming_normal", scale=1.0) if spec.init == "imagenet" else spec
    other, _ = initial_model(law, data, seed + REINIT_OFFSET)
    if spec.precision == "bf16":
        other.to(memory_format=torch.channels_last)
    out["reinit"] = measured(other, found.mask, data, few, batch=batch)
    return {"sanity": out, "sanity_images": len(few) if spec.control_images else None}


def fit_temperature(model: nn.Module, multipliers: Mapping[str, Tensor] | None, data: Data) -> float | None:
    """Return the temperature of the logits that minimises the cross entropy on a few training examples.

    Frozen weights cannot scale up the logits, so a search multiplies them by a temperature of its own. Accuracy does
    not depend on it, but bits do. It is fitted for every reading and control, and for trained networks, alike.
    """
    batch = data.train.batch(slice(TEMPERATURE_EXAMPLES))
    return finite(fitted_temperature(*measure.outputs(model, batch, multipliers)))


def constant(data: Data, part: Part) -> float:
    """Return the metric of the best constant prediction on one part, chosen on the training part.

    It is the most frequent class (accuracy), the frequencies of the characters (bits), or the mean of the targets
    (squared error).
    """
    if data.metric is MSE:
        return float((part.y - data.train.y.mean(0)).double().square().mean())
    counts = data.train.y.flatten().bincount(minlength=data.classes)
    if data.metric is BITS:
        frequencies = (counts + 1).double() / float((counts + 1).sum())  # every character may occur
        return float(-frequencies.log2()[part.y].mean())
    return 100.0 * float((part.y == int(counts.argmax())).double().mean())


def recalibration_images(data: Data) -> Iterator[Tensor]:
    """Yield the training images on which batch-norm statistics are re-estimated."""
    return (x for x, _ in data.train.take(slice(RECALIBRATION_IMAGES)).batches(200))


def measured(
    model: nn.Module,
    multipliers: Mapping[str, Tensor],
    data: Data,
    part: Part,
    trained: bool = False,
    search: methods.SearchResult | None = None,
    batch: int = 0,
) -> Reading:
    """Measure the metric of a model on one part of the data, with its weights times `multipliers`.

    If the network has batch norm, `value` is measured after its statistics were re-estimated on training images. If
    the model was `trained` with these multipliers, `value` is measured with the model's own statistics, and
    `recalibrated` after re-estimating them. If the `search` returned running statistics, `with_search_statistics` is
    measured with these statistics and with the gains that were in use when they were collected.
    """
    key = data.metric.key
    temperature = fit_temperature(model, multipliers, data) if data.metric is BITS else None

    def value(factors: Mapping[str, Tensor] | None = multipliers) -> float | None:
        return finite(measure.quality(model, part.batches(batch), factors, data.metric, temperature or 1.0))

    if not measure.has_batch_norm(model):
        return Reading(value(), temperature=temperature, metric=key)
    with measure.recalibrated(model, recalibration_images(data), multipliers):
        again = value()
    if trained:
        return Reading(value(), recalibrated=again, metric=key)
    if search is None or not search.running:
        return Reading(again, metric=key)
    own = measure.running(model)
    model.load_state_dict(search.running, strict=False)
    scaled = {n: m * search.gain[n].to(m.device) if n in search.gain else m for n, m in (multipliers or {}).items()}
    plain = value(scaled)
    model.load_state_dict(own, strict=False)
    return Reading(again, with_search_statistics=plain, metric=key)
