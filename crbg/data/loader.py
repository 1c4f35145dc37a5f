"""Images as uint8 tensors on the device, and shuffled minibatches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.errors import CrbgError

EVALUATION_PIXELS = 1000 * 28 * 28  # pixels in a default batch of `Part.batches`


@dataclass(frozen=True)
class Part:
    """Images and labels of one part of a data set, and how pixels become inputs.

    Attributes:
        x: Images, uint8 (N, C, H, W).
        y: Labels, int64 (N,).
        mean: Mean of each channel, of pixels scaled to [0, 1].
        std: Standard deviation of each channel.
        size: Edge to which images are enlarged; 0 keeps their size.
        rows: If given, the part consists of these rows of `x`, and `x` stays where it is when the part moves to a
            device. Large data sets use it to keep their pixels on disk.
    """

    x: Tensor
    y: Tensor
    mean: Tensor
    std: Tensor
    size: int = 0
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        """The device on which batches are computed."""
        return self.y.device

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return the images at these positions on the device, uint8 (n, C, H, W)."""
        if self.rows is None:
            return self.x[index]
        return self.x[self.rows[index.cpu() if isinstance(index, Tensor) else index]].to(self.device)

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Return the inputs at these positions, float32 (n, C, H, W)."""
        return self.standardise(self.pixels(index))

    def standardise(self, x: Tensor) -> Tensor:
        """Turn pixels into inputs: (pixel / 255 - mean) / std per channel, then bilinear enlargement to `size`."""
        scale = (1.0 / (255.0 * self.std)).reshape(-1, 1, 1)
        out = x.to(torch.float32).mul_(scale).sub_((self.mean / self.std).reshape(-1, 1, 1))
        return torch.nn.functional.interpolate(out, self.size, mode="bilinear") if self.size else out

    def batches(self, size: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all (inputs, labels) in order, `size` at a time; the default size suits the cache of a CPU."""
        channels, height, width = self.x.shape[1:]
        size = size or min(1000, max(64, EVALUATION_PIXELS // (channels * (self.size**2 or height * width))))
        for i in range(0, len(self), size):
            yield self.inputs(slice(i, i + size)), self.y[i : i + size]

    def to(self, device: torch.device) -> Part:
        """Move the part to a device; with `rows`, all of it but the images."""
        fields = ("x", "y", "mean", "std") if self.rows is None else ("y", "mean", "std")
        return replace(self, **{f: getattr(self, f).to(device) for f in fields})

    def take(self, kept: Tensor | slice) -> Part:
        """Return the images that a slice, a boolean mask or a tensor of positions selects."""
        if self.rows is None:
            return replace(self, x=self.x[kept], y=self.y[kept])
        return replace(self, rows=self.rows[kept.cpu() if isinstance(kept, Tensor) else kept], y=self.y[kept])

    def join(self, other: Part) -> Part:
        """Append the images of another part of the same data set."""
        y = torch.cat([self.y, other.y])
        if self.rows is None or other.rows is None:
            return replace(self, x=torch.cat([self.x, other.x]), y=y)
        return replace(self, rows=torch.cat([self.rows, other.rows]), y=y)


@dataclass(frozen=True)
class Data:
    """A data set: its training, validation and test part.

    Attributes:
        digest: SHA-256 of all images and labels; records store it.
        lossy_test: Positions of the test images that were decoded from JPEG copies.
        lossy: Number of such images in each part.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int
    digest: str
    lossy_test: Tensor
    lossy: Mapping[str, int] = field(default_factory=dict)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, (C, H, W)."""
        channels, *size = self.train.x.shape[1:]
        return (channels, *([self.train.size] * 2 if self.train.size else size))

    def sized(self, size: int) -> Data:
        """Return the data set with inputs of size x size pixels; 0 keeps their size."""
        if not size:
            return self
        return replace(self, **{p: replace(getattr(self, p), size=size) for p in ("train", "validation", "test")})

    def to(self, device: torch.device) -> Data:
        """Move all parts to a device."""
        return replace(self, **{p: getattr(self, p).to(device) for p in ("train", "validation", "test")})


@dataclass(frozen=True)
class BatchLoader:
    """Shuffled minibatches of one part, computed on its device.

    Order and augmentation are pure functions of (seed, epoch), so a resumed run needs no loader state. The last,
    incomplete batch of an epoch is dropped.

    Attributes:
        part: The images.
        size: Number of images in a batch.
        seed: Seed of order and augmentation.
        flip: Mirror each image horizontally with probability 1/2.
        crop: Shift each image by up to this number of pixels in both directions, with reflection at the edges.
        process: (k, n) for process k of n, which sees the examples k, k + n, k + 2n, ... of each batch.

    Raises:
        CrbgError: the batch is larger than the part, or the crop is as large as an image.
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
                f"batch size {self.size} does not fit {len(self.part)} training images; choose 1 to {len(self.part)}"
            )
        if not 0 <= self.crop < min(edges := tuple(self.part.x.shape[2:])):
            raise CrbgError(f"crop {self.crop} does not fit images of {edges} pixels; choose 0 to {min(edges) - 1}")

    def __len__(self) -> int:
        return len(self.part) // self.size

    def plain(self) -> BatchLoader:
        """Return the same batches without augmentation."""
        return replace(self, flip=False, crop=0)

    def shared(self, k: int, n: int) -> tuple[BatchLoader, float]:
        """Return the share of process k of n, and the factor on its mean loss.

        With this factor the average over the processes is the mean over the batch, for shares of unequal size too.

        Raises:
            CrbgError: a batch has fewer examples than there are processes.
        """
        if self.size < n:
            raise CrbgError(
                f"a batch of {self.size} cannot be shared by {n} processes; use a larger batch or fewer processes"
            )
        return replace(self, process=(k, n)), len(range(k, self.size, n)) * n / self.size

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the images for an epoch, shape (N,)."""
        return torch.from_numpy(rng.permutation(len(self.part), self.seed, "order", str(epoch)))

    def digest(self) -> str:
        """Return the SHA-256 of the batch size and the first epoch's order, the same for runs with equal batches."""
        return hashlib.sha256(f"{self.size}:".encode() + self.order(0).numpy().astype("<i8").tobytes()).hexdigest()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) of an epoch from batch `start` on, restricted to the share of this process."""
        order = self.order(epoch).to(self.part.device)
        shift, mirrored = self.drawn(epoch) if self.flip or self.crop else (None, None)
        for i in range(start, len(self)):
            at = slice(i * self.size + self.process[0], (i + 1) * self.size, self.process[1])
            if shift is None:
                yield self.part.inputs(order[at]), self.part.y[order[at]]
                continue
            rows, columns = self.sources(shift[:, at], None if mirrored is None else mirrored[at])
            channels = torch.arange(self.part.x.shape[1], device=order.device)[:, None, None]
            # Images on disk are fetched first; for images in memory one gather selects and moves them.
            if self.part.rows is None:
                source, places = self.part.x, order[at]
            else:
                source, places = self.part.pixels(order[at]), torch.arange(len(order[at]))
            places = places.to(order.device)[:, None, None, None]
            moved = source[places, channels, rows[:, None, :, None], columns[:, None, None, :]]
            yield self.part.standardise(moved), self.part.y[order[at]]

    def drawn(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Draw the augmentation of an epoch.

        Returns:
            The shifts of all images in rows and columns, int64 (2, N), and which images are mirrored, bool (N,), or
            None without `flip`.
        """
        n, device = len(self.part), self.part.device
        moved = rng.integers(2 * n, self.seed, "crop", str(epoch)) % np.uint64(2 * self.crop + 1)
        mirrored = torch.from_numpy(rng.sign(n, self.seed, "flip", str(epoch)) > 0).to(device) if self.flip else None
        return torch.from_numpy(moved.astype(np.int64) - self.crop).reshape(2, n).to(device), mirrored

    def sources(self, shift: Tensor, mirrored: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return where augmented images take their pixels from: rows (n, H) and columns (n, W) of the originals."""
        (height, width), device = self.part.x.shape[2:], shift.device
        rows = _reflected(torch.arange(height, device=device) + shift[0, :, None], height)
        columns = _reflected(torch.arange(width, device=device) + shift[1, :, None], width)
        return rows, columns if mirrored is None else torch.where(mirrored[:, None], width - 1 - columns, columns)


def _reflected(place: Tensor, size: int) -> Tensor:
    """Reflect positions up to size - 1 beyond an edge back into the image, without repeating the edge."""
    return size - 1 - (size - 1 - place.abs()).abs()
