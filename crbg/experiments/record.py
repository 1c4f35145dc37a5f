"""The record of one run, typed and versioned. This module does not import torch.

`Record` and `Evaluation` mirror record.json and evaluation.json. A key that is absent from a file is None here, and
None is not written. A number that a run could not measure (NaN) is null in the file and None here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from crbg.data.metrics import ACCURACY, METRICS
from crbg.errors import CrbgError

SCHEMA = 2
FIRST = 1  # schema of records of accuracy, whose format is unchanged: a repeated run gives the same bytes


class _Json:
    """Base class of the dataclasses in this module: conversion from plain JSON values and back."""

    @classmethod
    def from_json(cls, body: Any, place: str) -> Self:
        """Build an instance from plain JSON values. Unknown keys are ignored.

        Raises:
            CrbgError: a required key is missing, or a value has the wrong type; the message names `place`.
        """
        body = _mapping(body, place)
        values: dict[str, Any] = {}
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            if f.name in body:
                read: Callable[[Any, str], Any] = f.metadata.get("read") or _READERS[str(f.type)]
                values[f.name] = read(body[f.name], f"{place}: {f.name}")
            elif f.default is dataclasses.MISSING:
                raise CrbgError(f"{place} lacks {f.name!r}; delete it and repeat the run")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without optional keys that are None."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value is not None or f.default is dataclasses.MISSING:
                out[f.name] = _plain(value)
        return out


@dataclass(frozen=True)
class Reading(_Json):
    """Quality and density of one reading of a ticket.

    A reading is a way to turn gates into multipliers of the weights (see docs/vocabulary.md).

    Attributes:
        value: The metric after re-estimating the batch-norm statistics; for trained weights, with those from training.
        density: Kept / total of the gated weights. None for sanity controls, which have the density of the ticket.
        recalibrated: For trained weights, the metric after re-estimating the batch-norm statistics.
        with_search_statistics: The metric with the running batch-norm statistics at the end of the search.
        without_recalibration: Older name of `with_search_statistics`, found in older records.
        temperature: For bits per character, the number by which the logits were divided, fitted on training examples.
        metric: Key of the metric (`crbg.data.metrics`). In JSON, `value` has this key, so that a record of images says
            "accuracy": 97.1.
    """

    value: float | None
    density: float | None = None
    recalibrated: float | None = None
    with_search_statistics: float | None = None
    without_recalibration: float | None = None
    temperature: float | None = None
    metric: str = ACCURACY.key

    @classmethod
    def from_json(cls, body: Any, place: str) -> Self:
        """Build a reading from plain JSON values.

        Raises:
            CrbgError: there is no value of a known metric, or a value has the wrong type; the message names `place`.
        """
        body = _mapping(body, place)
        metric = next((key for key in METRICS if key in body), None)
        if metric is None:
            raise CrbgError(f"{place} lacks {' or '.join(map(repr, METRICS))}; delete it and repeat the run")
        _READERS["float | None"](body[metric], f"{place}: {metric}")
        return super().from_json({**body, "value": body[metric], "metric": metric}, place)

    def to_json(self) -> dict[str, Any]:
        out = super().to_json()
        return {out.pop("metric"): out.pop("value")} | out


@dataclass(frozen=True)
class Count(_Json):
    """Number of kept weights (or units) of one tensor, and total number."""

    kept: int
    total: int

    @property
    def density(self) -> float:
        """Return kept / total."""
        return self.kept / self.total


@dataclass(frozen=True)
class Digests(_Json):
    """SHA-256 digests of the inputs and outputs of a run.

    Attributes:
        initial: Initial tensors.
        draw: Initial weights before scaling. Runs that differ only in `scale` share this digest.
        data: Images and labels of the data set.
        order: Order of the training images.
        mask: Mask of the ticket.
        gates: Tensors in the gate file.
    """

    initial: str
    draw: str
    data: str
    order: str
    mask: str | None = None
    gates: str | None = None


def _each(kind: type[_Json]) -> Callable[[Any, str], dict[str, Any]]:
    """Return a parser of mappings from names to instances of `kind`."""
    return lambda body, place: {n: kind.from_json(v, f"{place}: {n}") for n, v in _mapping(body, place).items()}


@dataclass(frozen=True)
class Measurement(_Json):
    """What was measured on one split of the data (validation or test).

    Attributes:
        readings: Readings by name: `binary` (the ticket), `exact`, `mean`, `open`, `half`, `untrained` (see
            docs/vocabulary.md).
        images: Number of images in the split.
        constant: The metric of the best constant prediction: the most frequent training class (accuracy), the
            frequencies of the training characters (bits), or the mean of the training targets (squared error).
        naive: The metric of the naive predictors of the field, by name.
        sanity: Controls of the binary ticket (`shuffle`, `invert`, `reinit`), for tickets on untrained weights.
        sanity_images: Number of images on which the controls were measured, if not on all.
        density_missed: Whether the search missed its target density; the ticket then keeps the k highest scores.
    """

    readings: Mapping[str, Reading] = field(metadata={"read": _each(Reading)})
    images: int | None = None
    constant: float | None = None
    naive: Mapping[str, float] | None = None
    sanity: Mapping[str, Reading] | None = field(default=None, metadata={"read": _each(Reading)})
    sanity_images: int | None = None
    density_missed: bool | None = None

    def value(self, reading: str = "binary") -> float | None:
        """Return the metric of a reading, or None if there is no such reading."""
        found = self.readings.get(reading)
        return found.value if found else None

    def controls(self) -> dict[str, float | None]:
        """Return the metric of each sanity control and of a constant prediction, by name."""
        return {name: control.value for name, control in (self.sanity or {}).items()} | {"constant": self.constant}


@dataclass(frozen=True)
class Record(_Json):
    """The results of a finished run, excluding run times, machine names and all results on the test part.

    Attributes:
        schema: Version of the format: 1 for a record of accuracy, 2 for one of another metric.
        status: `ok`, or `collapse` with a `reason`.
        steps: Number of optimiser steps of the whole run.
        lossy_images: Number of images in each split that their source provides only with lossy compression.
        roles: Names of the tensors by role: gated, frozen, trained, redrawn, recalibrated.
        layers: Kept and total weights of each gated tensor; `depth` lists these tensors in the order of the model.
        dead_units: Number of output units of each tensor that no kept weight reaches.
        silent_units: Number of units of each activation whose output is the same for every image.
        file_bytes: Size in bytes of the result as a file (`crbg.runs.file_size`).
        effective_density: Density if only kept weights on a path from input to output are counted.
        heads: Kept weights of each attention head.
        anatomy: Further results of the method: histograms of mu, kept units, objectives, values by epoch.
        shares: Fractions of gates at 0, at 1 and in between, for each tensor and for `all`.
    """

    schema: int
    digest: str
    spec: Mapping[str, Any]
    version: int
    seed: int
    status: str
    steps: int
    train_images: int
    digests: Digests = field(metadata={"read": Digests.from_json})
    reason: str | None = None
    lossy_images: Mapping[str, int] | None = None
    roles: Mapping[str, list[str]] | None = None
    gated: int | None = None
    parameters: int | None = None
    density: float | None = None
    effective_density: float | None = None
    layers: Mapping[str, Count] | None = field(default=None, metadata={"read": _each(Count)})
    depth: list[str] | None = None
    dead_units: Mapping[str, int] | None = None
    silent_units: Mapping[str, int] | None = None
    flops: Mapping[str, float] | None = None
    file_bytes: int | None = None
    heads: Mapping[str, Any] | None = None
    anatomy: Mapping[str, Any] | None = None
    shares: Mapping[str, Mapping[str, float]] | None = None
    validation: Measurement | None = field(default=None, metadata={"read": Measurement.from_json})

    @classmethod
    def from_json(cls, body: Any, place: str) -> Self:
        """Build a record from plain JSON values.

        Raises:
            CrbgError: the schema is unknown, a key is missing, or a value has a wrong type; the message names `place`.
        """
        if (schema := _mapping(body, place).get("schema", FIRST)) not in (FIRST, SCHEMA):
            raise CrbgError(f"{place} has schema {schema!r}, but this version reads 1 and {SCHEMA}; update crbg")
        return super().from_json(body, place)

    @property
    def ok(self) -> bool:
        """Whether the search found a ticket."""
        return self.status == "ok"

    @property
    def missed_density(self) -> bool:
        """Whether the search missed its target density; the ticket then keeps the k highest scores."""
        return bool(self.validation and self.validation.density_missed)

    def value(self, reading: str = "binary") -> float | None:
        """Return the metric of a reading on the validation part, or None if it was not measured."""
        return self.validation.value(reading) if self.validation else None

    def controls(self) -> dict[str, float | None]:
        """Return the metric of each control on the validation part; empty if validation was not measured."""
        return self.validation.controls() if self.validation else {}

    def units(self) -> dict[str, Count]:
        """Return kept and total units of each tensor that has one gate for each unit; empty for gates on weights."""
        found = (self.anatomy or {}).get("units", {})
        return {name: Count.from_json(count, f"units of {name}") for name, count in found.items()}


@dataclass(frozen=True)
class WithoutLossy(_Json):
    """The ticket measured on those test images that their source provides without lossy compression."""

    images: int
    binary: Reading = field(metadata={"read": Reading.from_json})


@dataclass(frozen=True)
class Evaluation(_Json):
    """The evaluation of a finished run on the test set, with its seed and the digests of its spec, mask and data."""

    digest: str
    seed: int
    mask: str
    data: str
    test: Measurement = field(metadata={"read": Measurement.from_json})
    test_without_lossy: WithoutLossy | None = field(default=None, metadata={"read": WithoutLossy.from_json})

    def value(self, reading: str = "binary") -> float | None:
        """Return the metric of a reading on the test part, or None if there is no such reading."""
        return self.test.value(reading)


@dataclass(frozen=True)
class Run:
    """A finished run, as returned by the record store.

    Attributes:
        provenance: Times, device and versions (provenance.json).
        origin: `this run` for a fresh run, `recorded` for a committed one.
    """

    record: Record
    provenance: Mapping[str, Any]
    evaluation: Evaluation | None
    origin: str


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CrbgError(f"{place}: an object was expected, not {value!r:.80}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, _Json):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return value


def _of(kind: type | tuple[type, ...], name: str, optional: bool = False) -> Callable[[Any, str], Any]:
    def read(value: Any, place: str) -> Any:
        if (value is None and optional) or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise CrbgError(f"{place}: {name} was expected, not {value!r:.80}")

    return read


# Parsers of values, keyed by the type annotation of the field. For plain mappings, only the outer type is checked.
_READERS: dict[str, Callable[[Any, str], Any]] = {
    "int": _of(int, "a whole number"),
    "int | None": _of(int, "a whole number", optional=True),
    "float | None": _of((int, float), "a number", optional=True),
    "str": _of(str, "text"),
    "str | None": _of(str, "text", optional=True),
    "bool | None": _of(bool, "true or false", optional=True),
    "list[str] | None": _of(list, "a list", optional=True),
    **dict.fromkeys(
        ("Mapping[str, Any]", "Mapping[str, Any] | None", "Mapping[str, int] | None", "Mapping[str, float] | None",
         "Mapping[str, list[str]] | None", "Mapping[str, Mapping[str, float]] | None"),
        _mapping,
    ),
}  # fmt: skip
