"""Images as uint8 tensors on the device, and shuffled minibatches of these images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.errors import CrbgError

EVALUATION_PIXELS = 1000 * 28 * 28  # values (channels x pixels) in a default batch of `Part.batches`


@dataclass(frozen=True)
class Part:
    """Images and labels of one split of a data set, and the conversion from pixels to inputs.

    Attributes:
        x: Images, uint8 (N, C, H, W).
        y: Labels, int64 (N,).
        mean: Mean of each channel, for pixels scaled to [0, 1].
        std: Standard deviation of each channel.
        size: Edge length to which images are enlarged, in pixels; 0 keeps their size.
        rows: If given, the split consists of these rows of `x`, and `to` does not move `x`. Large data sets use this to
            keep their pixels on disk.
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
        """Return the images at the given positions, moved to the device, uint8 (n, C, H, W)."""
        if self.rows is None:
            return self.x[index]
        return self.x[self.rows[index.cpu() if isinstance(index, Tensor) else index]].to(self.device)

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Return the inputs at the given positions, float32 (n, C, H, W)."""
        return self.standardise(self.pixels(index))

    def standardise(self, x: Tensor) -> Tensor:
        """Convert pixels to inputs: (pixel / 255 - mean) / std per channel, then bilinear enlargement to `size`."""
        scale = (1.0 / (255.0 * self.std)).reshape(-1, 1, 1)
        out = x.to(torch.float32).mul_(scale).sub_((self.mean / self.std).reshape(-1, 1, 1))
        return torch.nn.functional.interpolate(out, self.size, mode="bilinear") if self.size else out

    def batches(self, size: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches (inputs, labels) of `size` examples in order; the default size is chosen to fit a CPU cache."""
        channels, height, width = self.x.shape[1:]
        size = size or min(1000, max(64, EVALUATION_PIXELS // (channels * (self.size**2 or height * width))))
        for i in range(0, len(self), size):
            yield self.inputs(slice(i, i + size)), self.y[i : i + size]

    def to(self, device: torch.device) -> Part:
        """Move the split to a device; with `rows`, everything except the images."""
        fields = ("x", "y", "mean", "std") if self.rows is None else ("y", "mean", "std")
        return replace(self, **{f: getattr(self, f).to(device) for f in fields})

    def take(self, kept: Tensor | slice) -> Part:
        """Return the subset that a slice, a boolean mask or a tensor of positions selects."""
        if self.rows is None:
            return replace(self, x=self.x[kept], y=self.y[kept])
        return replace(self, rows=self.rows[kept.cpu() if isinstance(kept, Tensor) else kept], y=self.y[kept])

    def join(self, other: Part) -> Part:
        """Return this split with the images of another split of the same data set appended."""
        y = torch.cat([self.y, other.y])
        if self.rows is None or other.rows is None:
            return replace(self, x=torch.cat([self.x, other.x]), y=y)
        return replace(self, rows=torch.cat([self.rows, other.rows]), y=y)


@dataclass(frozen=True)
class Data:
    """A data set: its training, validation and test splits.

    Attributes:
        digest: SHA-256 of all images and labels, stored in every record.
        lossy_test: Positions of the test images that were decoded from JPEG copies.
        lossy: Number of images decoded from JPEG copies, by split.
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
        """Return the data set with inputs enlarged to size x size pixels; 0 keeps their size."""
        if not size:
            return self
        return replace(self, **{p: replace(getattr(self, p), size=size) for p in ("train", "validation", "test")})

    def to(self, device: torch.device) -> Data:
        """Move all splits to a device."""
        return replace(self, **{p: getattr(self, p).to(device) for p in ("train", "validation", "test")})


@dataclass(frozen=True)
class BatchLoader:
    """Shuffled minibatches of one split, computed on its device.

    Order and augmentation are pure functions of (seed, epoch), so no loader state has to be saved to resume a run. An
    incomplete last batch is dropped.

    Attributes:
        part: The split.
        size: Number of images in a batch.
        seed: Seed of the order and the augmentation.
        flip: Mirror each image horizontally with probability 1/2.
        crop: Shift each image by up to this number of pixels along each axis, with reflection padding.
        process: (k, n) if this is process k of n, which gets the examples k, k + n, k + 2n, ... of each batch.

    Raises:
        CrbgError: `size` exceeds the number of images, or `crop` is at least the edge length of an image.
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
        """Return the permutation of the images for an epoch, shape (N,)."""
        return torch.from_numpy(rng.permutation(len(self.part), self.seed, "order", str(epoch)))

    def digest(self) -> str:
        """Return the SHA-256 of the batch size and the order of the first epoch, equal for runs with equal batches."""
        return hashlib.sha256(f"{self.size}:".encode() + self.order(0).numpy().astype("<i8").tobytes()).hexdigest()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of the batches (inputs, labels) of an epoch, starting with batch `start`."""
        order = self.order(epoch).to(self.part.device)
        shift, mirrored = self.drawn(epoch) if self.flip or self.crop else (None, None)
        for i in range(start, len(self)):
            at = slice(i * self.size + self.process[0], (i + 1) * self.size, self.process[1])
            if shift is None:
                yield self.part.inputs(order[at]), self.part.y[order[at]]
                continue
            rows, columns = self.sources(shift[:, at], None if mirrored is None else mirrored[at])
            channels = torch.arange(self.part.x.shape[1], device=order.device)[:, None, None]
            # Images on disk are fetched first; images in memory are selected and shifted by a single gather.
            if self.part.rows is None:
                source, places = self.part.x, order[at]
            else:
                source, places = self.part.pixels(order[at]), torch.arange(len(order[at]))
            places = places.to(order.device)[:, None, None, None]
            moved = source[places, channels, rows[:, None, :, None], columns[:, None, None, :]]
            yield self.part.standardise(moved), self.part.y[order[at]]

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
        (height, width), device = self.part.x.shape[2:], shift.device
        rows = _reflected(torch.arange(height, device=device) + shift[0, :, None], height)
        columns = _reflected(torch.arange(width, device=device) + shift[1, :, None], width)
        return rows, columns if mirrored is None else torch.where(mirrored[:, None], width - 1 - columns, columns)


def _reflected(place: Tensor, size: int) -> Tensor:
    """Reflect positions up to size - 1 pixels outside the image back into it, without repeating edge pixels."""
    return size - 1 - (size - 1 - place.abs()).abs()
