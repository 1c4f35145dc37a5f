"""Shuffled minibatches of one part of a data set, with augmentation of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.data.images import ImagePart
from crbg.data.parts import Part
from crbg.errors import CrbgError


@dataclass(frozen=True)
class BatchLoader:
    """Shuffled minibatches of one part of a data set, computed on its device.

    Order and augmentation are pure functions of (seed, epoch), so no loader state has to be saved to resume a run. An
    incomplete last batch is dropped.

    Attributes:
        part: The part of the data set.
        size: Number of examples in a batch.
        seed: Seed of the order and the augmentation.
        flip: Mirror each image horizontally with probability 1/2.
        crop: Shift each image by up to this number of pixels along each axis, with reflection padding.
        process: (k, n) if this is process k of n, which gets the examples k, k + n, k + 2n, ... of each batch.

    Raises:
        CrbgError: `size` exceeds the number of examples, `crop` is at least the edge length of an image, or `flip` or
            `crop` is set and the examples are not images.
    """

    part: Part
    size: int
    seed: int
    flip: bool = False
    crop: int = 0
    process: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= len(self.part):
            raise CrbgError(
                f"batch size {self.size} does not fit {len(self.part)} training examples; choose 1 to {len(self.part)}"
            )
        if (self.flip or self.crop) and not 0 <= self.crop < min(edges := tuple(self.images.x.shape[2:])):
            raise CrbgError(f"crop {self.crop} does not fit images of {edges} pixels; choose 0 to {min(edges) - 1}")

    def __len__(self) -> int:
        return len(self.part) // self.size

    @property
    def images(self) -> ImagePart:
        """The part, which must consist of images, since only images can be augmented.

        Raises:
            CrbgError: the examples are not images.
        """
        if not isinstance(self.part, ImagePart):
            raise CrbgError("flip and crop augment images, but the examples of this data set are no images")
        return self.part

    def plain(self) -> BatchLoader:
        """Return a loader of the same batches without augmentation."""
        return replace(self, flip=False, crop=0)

    def shared(self, k: int, n: int) -> tuple[BatchLoader, float]:
        """Return the loader for process k of n, and a factor that multiplies the mean loss of this process.

        With this factor, the average over the processes equals the mean over the batch, even if some processes get
        more examples than others.

        Raises:
            CrbgError: a batch has fewer examples than there are processes.
        """
        if self.size < n:
            raise CrbgError(
                f"a batch of {self.size} cannot be split over {n} processes; use a larger batch or fewer processes"
            )
        return replace(self, process=(k, n)), len(range(k, self.size, n)) * n / self.size

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the examples for an epoch, shape (N,)."""
        return torch.from_numpy(rng.permutation(len(self.part), self.seed, "order", str(epoch)))

    def digest(self) -> str:
        """Return the SHA-256 of the batch size and the order of the first epoch, equal for runs with equal batches."""
        return hashlib.sha256(f"{self.size}:".encode() + self.order(0).numpy().astype("<i8").tobytes()).hexdigest()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """Yield this process's share of the batches (inputs, labels) of an epoch, starting with batch `start`."""
        order = self.order(epoch).to(self.part.device)
        shift, mirrored = self.drawn(epoch) if self.flip or self.crop else (None, None)
        for i in range(start, len(self)):
            at = slice(i * self.size + self.process[0], (i + 1) * self.size, self.process[1])
            if shift is None:
                yield self.part.batch(order[at])
                continue
            part = self.images
            rows, columns = self.sources(shift[:, at], None if mirrored is None else mirrored[at])
            channels = torch.arange(part.x.shape[1], device=order.device)[:, None, None]
            # Images on disk are fetched first; images in memory are selected and shifted by a single gather.
            if part.rows is None:
                source, places = part.x, order[at]
            else:
                source, places = part.pixels(order[at]), torch.arange(len(order[at]))
            places = places.to(order.device)[:, None, None, None]
            moved = source[places, channels, rows[:, None, :, None], columns[:, None, None, :]]
            yield part.standardise(moved), part.y[order[at]]

    def drawn(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Sample the augmentation of an epoch.

        Returns:
            The shifts of all images along rows and columns, int64 (2, N), and whether each image is mirrored, bool
            (N,), or None without `flip`.
        """
        n, device = len(self.part), self.part.device
        moved = rng.integers(2 * n, self.seed, "crop", str(epoch)) % np.uint64(2 * self.crop + 1)
        mirrored = torch.from_numpy(rng.sign(n, self.seed, "flip", str(epoch)) > 0).to(device) if self.flip else None
        return torch.from_numpy(moved.astype(np.int64) - self.crop).reshape(2, n).to(device), mirrored

    def sources(self, shift: Tensor, mirrored: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the positions from which augmented images take their pixels: rows (n, H) and columns (n, W)."""
        (height, width), device = self.images.x.shape[2:], shift.device
        rows = _reflected(torch.arange(height, device=device) + shift[0, :, None], height)
        columns = _reflected(torch.arange(width, device=device) + shift[1, :, None], width)
        return rows, columns if mirrored is None else torch.where(mirrored[:, None], width - 1 - columns, columns)


def _reflected(place: Tensor, size: int) -> Tensor:
    """Reflect positions up to size - 1 pixels outside the image back into it, without repeating edge pixels."""
    return size - 1 - (size - 1 - place.abs()).abs()
