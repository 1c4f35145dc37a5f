"""Images as uint8 tensors that live on the device, and shuffled minibatches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.errors import CrbgError

FILL = 1000 * 28 * 28  # numbers in a batch that is only looked at


@dataclass(frozen=True)
class Part:
    """Images uint8 (N, C, H, W) and labels int64 (N,), with what turns pixels into inputs; a `size` above 0 enlarges them to it.

    With `rows` the part is those rows of a larger `x`, which stays where it is when the part moves to a device.
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
        """The device on which batches are made."""
        return self.y.device

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Take images, uint8 (n, C, H, W), to the device."""
        if self.rows is None:
            return self.x[index]
        return self.x[self.rows[index.cpu() if isinstance(index, Tensor) else index]].to(self.device)

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Make a batch of inputs of these images."""
        return self.standardise(self.pixels(index))

    def standardise(self, x: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std per channel, float32; then enlarged, bilinearly, where a size is set."""
        scale = (1.0 / (255.0 * self.std)).reshape(-1, 1, 1)
        out = x.to(torch.float32).mul_(scale).sub_((self.mean / self.std).reshape(-1, 1, 1))
        return torch.nn.functional.interpolate(out, self.size, mode="bilinear") if self.size else out

    def batches(self, size: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk through all images in order, `size` at a time; by default as many as leave a convolution in a processor's cache."""
        channels, height, width = self.x.shape[1:]
        size = size or min(1000, max(64, FILL // (channels * (self.size**2 or height * width))))
        for i in range(0, len(self), size):
            yield self.inputs(slice(i, i + size)), self.y[i : i + size]

    def to(self, device: torch.device) -> Part:
        """Move everything to a device, rows of something larger excepted."""
        fields = ("x", "y", "mean", "std") if self.rows is None else ("y", "mean", "std")
        return replace(self, **{f: getattr(self, f).to(device) for f in fields})

    def take(self, kept: Tensor | slice) -> Part:
        """Keep some of the images, by a slice, a mask or numbers."""
        if self.rows is None:
            return replace(self, x=self.x[kept], y=self.y[kept])
        return replace(self, rows=self.rows[kept.cpu() if isinstance(kept, Tensor) else kept], y=self.y[kept])

    def join(self, other: Part) -> Part:
        """Put the images of another part of the same data behind these."""
        y = torch.cat([self.y, other.y])
        if self.rows is None or other.rows is None:
            return replace(self, x=torch.cat([self.x, other.x]), y=y)
        return replace(self, rows=torch.cat([self.rows, other.rows]), y=y)


@dataclass(frozen=True)
class Data:
    """Training, validation and test part of a data set, with the digest that records quote."""

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int
    digest: str
    lossy_test: Tensor
    lossy: Mapping[str, int] = field(default_factory=dict)  # images of each part that were decoded from JPEG copies

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, (C, H, W)."""
        channels, *size = self.train.x.shape[1:]
        return (channels, *([self.train.size] * 2 if self.train.size else size))

    def sized(self, size: int) -> Data:
        """Enlarge the inputs to size x size pixels; 0 leaves them as they are."""
        return (
            replace(self, **{p: replace(getattr(self, p), size=size) for p in ("train", "validation", "test")})
            if size
            else self
        )

    def to(self, device: torch.device) -> Data:
        """Move all parts to a device."""
        return replace(self, **{p: getattr(self, p).to(device) for p in ("train", "validation", "test")})


@dataclass(frozen=True)
class BatchLoader:
    """Shuffled minibatches of one part, made on its device.

    Order and augmentation are pure functions of (seed, epoch), so a resumed run needs no loader state. `flip` mirrors
    half of the images; `crop` moves each by up to so many pixels in both directions, what is missing at the edge
    reflected. `mine` = (k, n) gives every n-th example of each batch from the k-th on, where n processes share them.
    """

    part: Part
    size: int
    seed: int
    flip: bool = False
    crop: int = 0
    mine: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= len(self.part):
            raise CrbgError(f"batch size {self.size} does not fit {len(self.part)} training images")
        if not 0 <= self.crop < min(self.part.x.shape[2:]):
            raise CrbgError(f"crop {self.crop} does not fit images of {tuple(self.part.x.shape[2:])} pixels")

    def __len__(self) -> int:
        return len(self.part) // self.size

    def plain(self) -> BatchLoader:
        """Give the same batches without augmentation."""
        return replace(self, flip=False, crop=0)

    def shared(self, k: int, n: int) -> tuple[BatchLoader, float]:
        """Give every n-th example of each batch from the k-th on, and the factor on their mean loss that makes the n's average the batch's.

        Raises:
            CrbgError: there are fewer examples in a batch than processes.
        """
        if self.size < n:
            raise CrbgError(
                f"a batch of {self.size} cannot be shared by {n} processes; make the batch larger or use fewer"
            )
        return replace(self, mine=(k, n)), len(range(k, self.size, n)) * n / self.size

    def order(self, epoch: int) -> Tensor:
        """Permute the images for an epoch; the incomplete last batch is dropped."""
        return torch.from_numpy(rng.permutation(len(self.part), self.seed, "order", str(epoch)))

    def digest(self) -> str:
        """SHA-256 of the first epoch's order with the batch size, which tells whether two runs saw the same batches."""
        return hashlib.sha256(f"{self.size}:".encode() + self.order(0).numpy().astype("<i8").tobytes()).hexdigest()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) from batch `start` on; only `mine` of each."""
        order = self.order(epoch).to(self.part.device)
        shift, coins = self.drawn(epoch) if self.flip or self.crop else (None, None)
        for i in range(start, len(self)):
            at = slice(i * self.size + self.mine[0], (i + 1) * self.size, self.mine[1])
            if shift is None:
                yield self.part.inputs(order[at]), self.part.y[order[at]]
                continue
            rows, columns = self.moves(shift[:, at], None if coins is None else coins[at])
            channels = torch.arange(self.part.x.shape[1], device=order.device)[:, None, None]
            # Rows of something larger are fetched first; from memory one gather does both.
            source, places = (
                (self.part.x, order[at])
                if self.part.rows is None
                else (self.part.pixels(order[at]), torch.arange(len(order[at])))
            )
            places = places.to(order.device)[:, None, None, None]
            moved = source[places, channels, rows[:, None, :, None], columns[:, None, None, :]]
            yield self.part.standardise(moved), self.part.y[order[at]]

    def drawn(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Draw by how many rows and columns each image of an epoch moves, (2, N), and which are mirrored, (N,), where any are."""
        n, device = len(self.part), self.part.device
        moved = rng.integers(2 * n, self.seed, "crop", str(epoch)) % np.uint64(2 * self.crop + 1)
        coins = torch.from_numpy(rng.sign(n, self.seed, "flip", str(epoch)) > 0).to(device) if self.flip else None
        return torch.from_numpy(moved.astype(np.int64) - self.crop).reshape(2, n).to(device), coins

    def moves(self, shift: Tensor, coins: Tensor | None) -> tuple[Tensor, Tensor]:
        """Say which row and which column of its image each row and column of the augmented image shows, (n, H) and (n, W)."""
        (height, width), device = self.part.x.shape[2:], shift.device
        rows = _reflected(torch.arange(height, device=device) + shift[0, :, None], height)
        columns = _reflected(torch.arange(width, device=device) + shift[1, :, None], width)
        return rows, columns if coins is None else torch.where(coins[:, None], width - 1 - columns, columns)


def _reflected(place: Tensor, size: int) -> Tensor:
    """Turn places up to size - 1 beyond an edge back into the image, the edge itself shown once."""
    return size - 1 - (size - 1 - place.abs()).abs()
