"""What a run is: a frozen description with a canonical form and a digest. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
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
from crbg.errors import CrbgError, suggest


@dataclass(frozen=True)
class Spec:
    """One point of one experiment, without its seed. The `help` of each field explains it.

    Names and defaults of the fields enter the digest of every record: they never change.
    """

    data: str = field(metadata={"help": "a data set that `crbg list data` shows, or your own (`crbg data`)"})
    model: str = field(metadata={"help": "a network that `crbg list models` shows, or `timm:NAME`"})
    method: str = field(metadata={"help": "a method that `crbg list methods` shows"})
    density: float | None = field(
        default=None,
        metadata={"help": "share of the gated weights to keep (1 - sparsity); absent where the method decides"},
    )
    init: str = field(
        default="uniform",
        metadata={
            "help": "law of the initial weights: `uniform` on [-scale, scale]; `uniform_fan`, `signed_constant` and "
            "`kaiming_normal`, which follow the fan of each layer, times `scale`; or `imagenet`, the weights of timm"
        },
    )
    scale: float = field(default=1.0, metadata={"help": "range of the initial weights, or a factor on it (see `init`)"})
    epochs: int = field(
        default=40, metadata={"help": "epochs of the search, or of training where weights are trained; 0: no search"}
    )
    batch: int = field(default=256, metadata={"help": "images in a batch"})
    flip: bool = field(default=False, metadata={"help": "mirror images at random during the search"})
    crop: int = field(default=0, metadata={"help": "shift images at random by up to this many pixels"})
    size: int = field(
        default=0, metadata={"help": "edge in pixels to which images are enlarged; 0 leaves them as they are"}
    )
    precision: str = field(
        default="fp32",
        metadata={
            "help": "`fp32`, or `bf16`: products of the search in bfloat16. Parameters and all measurements stay fp32"
        },
    )
    fit_on: str = field(
        default="train",
        metadata={
            "help": "`train`, or `all`: train on the validation part too, which leaves only the test part to measure on"
        },
    )
    limit: int = field(default=0, metadata={"help": "use only the first images of the training part; 0 uses all"})
    control_images: int = field(
        default=0,
        metadata={"help": "images of the measured part on which the sanity controls are measured; 0 uses all"},
    )
    model_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "arguments of the network's constructor; one of them is `model_args.NAME`"},
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "options of the method (`crbg list methods NAME`); one of them is `options.NAME`"},
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
        yield from models.problems(self.model, self.model_args, self.init)
        with contextlib.suppress(CrbgError):  # unknown options were named above
            yield from methods.conflicts(self.method, self.resolved(), self.density)
        if self.density is not None and not 0 < self.density <= 1:
            yield f"density {self.density} is not in (0, 1]; density = kept / total"
        if self.init not in (known := (*rng.LAWS, "imagenet")):
            yield f"unknown initial law {self.init!r}: {suggest(self.init, known)}"
        if self.precision not in ("fp32", "bf16"):
            yield f"precision is 'fp32' or 'bf16', not {self.precision!r}"
        if self.fit_on not in ("train", "all"):
            yield f"fit_on is 'train' or 'all', not {self.fit_on!r}"
        if not self.scale > 0:
            yield f"scale {self.scale} must be > 0"
        for name in ("epochs", "limit", "crop", "size", "control_images"):
            if getattr(self, name) < 0:
                yield f"{name} {getattr(self, name)} must be >= 0"
        if self.batch < 1:
            yield f"batch {self.batch} must be >= 1"
        with contextlib.suppress(CrbgError):  # unknown data were named above
            images = info(self.data).train + (info(self.data).validation if self.fit_on == "all" else 0)
            if self.batch > (min(self.limit, images) if self.limit else images):
                yield f"batch {self.batch} is larger than the training part of {self.data} as used here"

    def resolved(self) -> Any:
        """Return the method's `Options` with every default filled in."""
        return methods.options(self.method, self.options)

    def layer_sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer of a fully connected network, from its name."""
        entry = info(self.data)
        return list(itertools.pairwise([math.prod(entry.shape), *map(int, self.model.split("-")[1:]), entry.classes]))

    def canonical(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, with the method's version: what the digest hashes."""
        fields = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.name != "options" and value != default:
                fields[f.name] = dict(value) if isinstance(value, Mapping) else value
        own = methods.differing(self.resolved())
        return fields | ({"options": own} if own else {}) | {"version": methods.get(self.method).VERSION}

    def digest(self) -> str:
        """Sixteen hex digits of the SHA-256 of the canonical form."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def slug(self) -> str:
        """Name the run for people: method, model, data, density, digest."""
        parts = [self.method, self.model, self.data, *([f"d{self.density:g}"] if self.density is not None else [])]
        return re.sub(r"[^\w.-]+", "-", "-".join(parts)) + "-" + self.digest()


def spec_from(values: Mapping[str, Any], place: str = "spec") -> Spec:
    """Build a Spec from plain values; every unknown key and wrong type is named at once, with the place."""
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
    """Return a spec in full as plain values, for records."""
    out = dataclasses.asdict(spec)
    out["options"] = dataclasses.asdict(spec.resolved())
    return out


def folder(results: Path, spec: Spec, seed: int) -> Path:
    """Name the folder of a run."""
    return results / "runs" / spec.slug() / f"seed{seed}"
