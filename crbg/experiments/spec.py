"""`Spec`, the frozen description of a run, with a canonical form and a digest. This module does not import torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crbg import methods, models, rng
from crbg.data.datasets import info
from crbg.data.metrics import MSE, Metric
from crbg.errors import CrbgError, suggest


@dataclass(frozen=True)
class Spec:
    """Everything that defines a run, except its seed. The `help` text of each field explains it.

    The names and defaults of the fields enter the digest of every record, so they must never change.
    """

    data: str = field(metadata={"help": "a data set listed by `crbg list data`, including your own (see `crbg data`)"})
    model: str = field(metadata={"help": "a network listed by `crbg list models`, or `timm:NAME`"})
    method: str = field(metadata={"help": "a method listed by `crbg list methods`"})
    density: float | None = field(
        default=None,
        metadata={"help": "fraction of the gated weights to keep (1 - sparsity); absent if the method decides it"},
    )
    init: str = field(
        default="uniform",
        metadata={
            "help": "distribution of the initial weights: `uniform` on [-scale, scale]; `uniform_fan`, "
            "`signed_constant` or `kaiming_normal`, which depend on the fan of each layer and are multiplied by "
            "`scale`; or `imagenet`, the pretrained weights of timm"
        },
    )
    scale: float = field(default=1.0, metadata={"help": "range of the initial weights, or a factor on it (see `init`)"})
    epochs: int = field(
        default=40, metadata={"help": "epochs of the search, or of training if the method trains weights; 0: no search"}
    )
    batch: int = field(default=256, metadata={"help": "number of images, or other examples, in a batch"})
    flip: bool = field(default=False, metadata={"help": "mirror training images at random"})
    crop: int = field(default=0, metadata={"help": "shift training images at random by up to this many pixels"})
    size: int = field(
        default=0, metadata={"help": "edge length in pixels to which images are enlarged; 0: the size of the data set"}
    )
    precision: str = field(
        default="fp32",
        metadata={
            "help": "`fp32` or `bf16`; with `bf16`, the search runs under autocast to bfloat16, and parameters and "
            "measurements stay in fp32"
        },
    )
    fit_on: str = field(
        default="train",
        metadata={
            "help": "`train` or `all`; `all` trains on the validation images too, so accuracy is measured on the test "
            "set only"
        },
    )
    limit: int = field(default=0, metadata={"help": "number of training examples to use, from the first on; 0: all"})
    control_images: int = field(
        default=0,
        metadata={"help": "number of examples of a split on which the sanity controls are measured; 0: all"},
    )
    watch_images: int = field(
        default=0,
        metadata={
            "help": "number of validation images on which the search measures, after each epoch, the loss with relaxed "
            "gates and with the binary ticket (gates on weights, with a density); 0: none"
        },
    )
    split: int = field(
        default=0, metadata={"help": "seed of the split of the training images into training and validation images"}
    )
    weight_bits: int = field(
        default=0,
        metadata={
            "help": "round the weights that the method trains to integers of this many bits (2 to 8) before measuring, "
            "with one scale for each output unit; 0: no rounding"
        },
    )
    model_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "arguments of the network's constructor; `model_args.NAME` sets one of them"},
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "options of the method (see `crbg list methods NAME`); `options.NAME` sets one of them"},
    )

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise CrbgError("; ".join(problems))

    def _problems(self) -> typing.Iterator[str]:
        for check in (lambda: info(self.data), lambda: self.resolved()):
            try:
                check()
            except CrbgError as error:
                yield str(error)
        kind = ""  # the data set is unknown, which was reported above
        with contextlib.suppress(CrbgError):
            kind = info(self.data).kind
            yield from self._unfit()
        yield from models.problems(self.model, self.model_args, self.init, kind)
        with contextlib.suppress(CrbgError):  # unknown options were reported above
            yield from methods.conflicts(self.method, self.resolved(), self.density)
        if self.density is not None and not 0 < self.density <= 1:
            yield f"density {self.density} is not in (0, 1]; density = kept / total"
        if self.init not in (known := (*rng.LAWS, "imagenet")):
            yield f"unknown init {self.init!r}: {suggest(self.init, known)}"
        if self.precision not in ("fp32", "bf16"):
            yield f"precision is 'fp32' or 'bf16', not {self.precision!r}"
        if self.fit_on not in ("train", "all"):
            yield f"fit_on is 'train' or 'all', not {self.fit_on!r}"
        if not self.scale > 0:
            yield f"scale {self.scale} must be > 0"
        for name in ("epochs", "limit", "crop", "size", "control_images", "watch_images", "split"):
            if getattr(self, name) < 0:
                yield f"{name} {getattr(self, name)} must be >= 0"
        if self.watch_images and (self.density is None or self.fit_on == "all"):
            yield "watch_images needs a density and a validation part; leave it out"
        with contextlib.suppress(CrbgError):  # unknown options were reported above
            if self.watch_images and getattr(self.resolved(), "granularity", "weight") != "weight":
                yield "watch_images needs one gate per weight; leave it out"
        if self.weight_bits not in (0, *range(2, 9)):
            yield f"weight_bits {self.weight_bits} must be 0 or from 2 to 8"
        with contextlib.suppress(CrbgError):  # unknown methods and options were reported above
            frozen = methods.traits(self.method).weights == "frozen"
            if self.weight_bits and frozen and not getattr(self.resolved(), "finetune", 0):
                yield f"weight_bits: {self.method} does not train weights, so none are stored; leave weight_bits out"
            if getattr(self.resolved(), "keep", "") == "best" and (self.fit_on == "all" or not self.epochs):
                yield "options.keep is `best`, which needs a validation part and at least one epoch; use `last`"
        if self.batch < 1:
            yield f"batch {self.batch} must be >= 1"
        with contextlib.suppress(CrbgError):  # an unknown data set was reported above
            entry = info(self.data)
            count = entry.train + (entry.validation if self.fit_on == "all" else 0)
            count = min(self.limit, count) if self.limit else count
            if self.batch > count:
                used = f"{count} training {entry.examples} of {self.data}"
                yield f"batch {self.batch} is larger than the {used} used here"

    def _unfit(self) -> typing.Iterator[str]:
        """Yield the errors that depend on the kind of data: images, graphs, text or series."""
        entry = info(self.data)
        if entry.kind != "images":
            for name in ("flip", "crop", "size", "split"):
                if getattr(self, name):
                    yield f"{name} is for images, and {self.data} has none; leave {name} out"
        with contextlib.suppress(CrbgError):  # unknown options were reported above
            if entry.metric is MSE and getattr(self.resolved(), "temperature", 1.0) != 1.0:
                yield f"options.temperature scales logits, and networks for {self.data} have none; leave it out"
            if entry.metric is MSE and getattr(self.resolved(), "scaled", False):
                yield "options.scaled multiplies outputs by a factor that a record of squared errors lacks; use `false`"
            if entry.metric is MSE and getattr(self.resolved(), "objective", "loss") in ("kl", "forward_kl", "feature"):
                yield f"options.objective compares probabilities, and networks for {self.data} have none; use `loss`"

    def resolved(self) -> Any:
        """Return the method's `Options` with every default filled in."""
        return self._resolved

    @functools.cached_property
    def _resolved(self) -> Any:
        """The options with their defaults, checked only once, since planning reads them many times for every cell."""
        return methods.options(self.method, self.options)

    def in_shape(self) -> tuple[int, ...]:
        """Return the shape of an input of the network; for an image, (channels, height, width)."""
        shape = info(self.data).shape
        return (shape[0], self.size, self.size) if self.size else shape

    @property
    def metric(self) -> Metric:
        """The metric of the data set."""
        return info(self.data).metric

    def layer_sizes(self) -> list[tuple[int, int]]:
        """Return (inputs, outputs) of each layer of a fully connected network, from its name."""
        hidden = map(int, self.model.split("-")[1:])
        return list(itertools.pairwise([math.prod(self.in_shape()), *hidden, info(self.data).classes]))

    def canonical(self) -> dict[str, Any]:
        """Return the input of the digest: all fields that differ from their defaults, and the method's version."""
        fields = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.name != "options" and value != default:
                fields[f.name] = dict(value) if isinstance(value, Mapping) else value
        own = methods.differing(self.resolved())
        return fields | ({"options": own} if own else {}) | {"version": methods.get(self.method).VERSION}

    def digest(self) -> str:
        """Return the first sixteen hex digits of the SHA-256 of the canonical form."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        """The digest, computed only once, since planning asks for it many times for every cell."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def slug(self) -> str:
        """Return a readable name of the run: method, model, data, density, digest."""
        parts = [self.method, self.model, self.data, *([f"d{self.density:g}"] if self.density is not None else [])]
        return re.sub(r"[^\w.-]+", "-", "-".join(parts)) + "-" + self.digest()


def spec_from(values: Mapping[str, Any], place: str = "spec") -> Spec:
    """Build a Spec from plain values.

    Raises:
        CrbgError: keys are unknown or missing, or values are wrong; the message begins with `place` and lists them all.
    """
    hints, problems = methods.hints(Spec), []
    for key, value in values.items():
        if key not in hints:
            problems.append(f"unknown key {key!r}: {suggest(str(key), hints)}")
        elif key in ("options", "model_args"):
            if not isinstance(value, Mapping):
                problems.append(f"{key} must be a mapping, not {value!r}")
        elif value is None and key == "density":
            continue
        elif not methods.fits(value, hints[key]):
            problems.append(
                f"{key} = {value!r} is {type(value).__name__}, not {getattr(hints[key], '__name__', hints[key])}"
            )
    problems += [f"{key} is missing" for key in ("data", "model", "method") if key not in values]
    if problems:
        raise CrbgError(f"{place}: " + "; ".join(problems))
    try:
        plain: dict[str, Any] = {k: v if v is None else methods.coerce(v, hints[k]) for k, v in values.items()}
        return Spec(**plain)
    except CrbgError as error:
        raise CrbgError(f"{place}: {error}") from None


def as_dict(spec: Spec) -> dict[str, Any]:
    """Return all fields of a spec as plain values, with the defaults of all options filled in."""
    out = dataclasses.asdict(spec)
    out["options"] = dataclasses.asdict(spec.resolved())
    return out


def folder(results: Path, spec: Spec, seed: int) -> Path:
    """Return the folder of a run."""
    return results / "runs" / spec.slug() / f"seed{seed}"
