"""The data protocol: a data set has three parts (training, validation, test), which provide batches of examples."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from crbg.data.metrics import ACCURACY, MSE, Metric
from crbg.training.loop import Loss


class Part(ABC):
    """One part of a data set.

    A batch is a pair (inputs, labels), as `crbg.training.forward` describes it: inputs are a tensor, or a tuple of
    tensors that the network takes as positional arguments.

    Attributes:
        y: Labels of all examples, (N, ...).
    """

    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.y.device

    @property
    @abstractmethod
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, as networks of `crbg.models` are built for it."""

    @property
    @abstractmethod
    def default_batch(self) -> int:
        """Number of examples in a batch of `batches`, unless it is given."""

    @abstractmethod
    def batch(self, index: Tensor | slice) -> tuple[Any, Tensor]:
        """Return the inputs and labels of the examples at the given positions."""

    def batches(self, size: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """Yield batches of `size` examples in order; 0 means `default_batch`."""
        size = size or self.default_batch
        for i in range(0, len(self), size):
            yield self.batch(slice(i, i + size))

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Move the part to a device."""

    @abstractmethod
    def take(self, kept: Tensor | slice) -> Self:
        """Return the subset that a slice, a boolean mask or a tensor of positions selects."""

    @abstractmethod
    def join(self, other: Self) -> Self:
        """Return this part with the examples of another part of the same data set appended."""


@dataclass(frozen=True)
class TensorPart(Part):
    """Examples as tensors in memory, for graphs, text and series.

    Attributes:
        x: Inputs, (N, ...).
        y: Labels, (N, ...).
        common: Tensors that every batch contains whole, before the inputs of its examples: the features and the edges
            of a graph.
        size: Default number of examples in a batch of `batches`.
    """

    x: Tensor
    y: Tensor
    common: tuple[Tensor, ...] = ()
    size: int = 1000

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input; for a graph, that of the features of a node."""
        return tuple((self.common[0] if self.common else self.x).shape[1:])

    @property
    def default_batch(self) -> int:
        """The attribute `size`."""
        return self.size

    def batch(self, index: Tensor | slice) -> tuple[Any, Tensor]:
        """Return the inputs and labels of the examples at the given positions."""
        x = self.x[index]
        return ((*self.common, x) if self.common else x), self.y[index]

    def to(self, device: torch.device) -> Self:
        """Move all tensors to a device."""
        common = tuple(t.to(device) for t in self.common)
        return replace(self, x=self.x.to(device), y=self.y.to(device), common=common)

    def take(self, kept: Tensor | slice) -> Self:
        """Return the subset that a slice, a boolean mask or a tensor of positions selects."""
        return replace(self, x=self.x[kept], y=self.y[kept])

    def join(self, other: Self) -> Self:
        """Return this part with the examples of another part of the same data set appended."""
        return replace(self, x=torch.cat([self.x, other.x]), y=torch.cat([self.y, other.y]))


@dataclass(frozen=True)
class Data:
    """A data set: its training, validation and test parts.

    Attributes:
        digest: SHA-256 of all inputs and labels, stored in every record.
        lossy_test: Positions of the test images that were decoded from JPEG copies.
        lossy: Number of images decoded from JPEG copies, by split.
        metric: What is measured on this data set; it determines the loss.
        naive: Naive predictors of the field, fitted on the training part: functions that return the metric on a part.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int
    digest: str
    lossy_test: Tensor = field(default_factory=lambda: torch.tensor([], dtype=torch.int64))
    lossy: Mapping[str, int] = field(default_factory=dict)
    metric: Metric = ACCURACY
    naive: Mapping[str, Callable[[Part], float]] = field(default_factory=dict)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.in_shape

    @property
    def loss(self) -> Loss:
        """The loss to minimise, a function of (outputs, labels)."""
        return nn.functional.mse_loss if self.metric is MSE else nn.functional.cross_entropy

    def sized(self, size: int) -> Data:
        """Return the data set with images enlarged to size x size pixels; 0 keeps their size."""
        if not size:
            return self
        return self._each(lambda part: cast(Any, part).sized(size))  # a spec with a size has images

    def to(self, device: torch.device) -> Data:
        """Move all parts to a device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Part], Part]) -> Data:
        return replace(self, train=change(self.train), validation=change(self.validation), test=change(self.test))


def digest_of(parts: Iterable[TensorPart]) -> str:
    """Return the SHA-256 of the inputs and labels of parts, as little-endian numbers."""
    digest = hashlib.sha256()
    for part in parts:
        for t in (part.x, part.y):
            values = t.numpy()
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
