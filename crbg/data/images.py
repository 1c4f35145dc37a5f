"""Images as uint8 tensors on the device, or on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from crbg.data.parts import Part

EVALUATION_PIXELS = 1000 * 28 * 28  # values (channels x pixels) in a default batch of `ImagePart.batches`


@dataclass(frozen=True)
class ImagePart(Part):
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

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, (C, H, W)."""
        channels, *size = self.x.shape[1:]
        return (channels, *([self.size] * 2 if self.size else size))

    @property
    def default_batch(self) -> int:
        """A number of images whose inputs fit a CPU cache."""
        return min(1000, max(64, EVALUATION_PIXELS // math.prod(self.in_shape)))

    def sized(self, size: int) -> Self:
        """Return the same images, enlarged to size x size pixels."""
        return replace(self, size=size)

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return the images at the given positions, moved to the device, uint8 (n, C, H, W)."""
        if self.rows is None:
            return self.x[index]
        return self.x[self.rows[index.cpu() if isinstance(index, Tensor) else index]].to(self.device)

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Return the inputs at the given positions, float32 (n, C, H, W)."""
        return self.standardise(self.pixels(index))

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of the images at the given positions."""
        return self.inputs(index), self.y[index]

    def standardise(self, x: Tensor) -> Tensor:
        """Convert pixels to inputs: (pixel / 255 - mean) / std per channel, then bilinear enlargement to `size`."""
        scale = (1.0 / (255.0 * self.std)).reshape(-1, 1, 1)
        out = x.to(torch.float32).mul_(scale).sub_((self.mean / self.std).reshape(-1, 1, 1))
        return torch.nn.functional.interpolate(out, self.size, mode="bilinear") if self.size else out

    def to(self, device: torch.device) -> Self:
        """Move the split to a device; with `rows`, everything except the images."""
        fields = ("x", "y", "mean", "std") if self.rows is None else ("y", "mean", "std")
        return replace(self, **{f: getattr(self, f).to(device) for f in fields})

    def take(self, kept: Tensor | slice) -> Self:
        """Return the subset that a slice, a boolean mask or a tensor of positions selects."""
        if self.rows is None:
            return replace(self, x=self.x[kept], y=self.y[kept])
        return replace(self, rows=self.rows[kept.cpu() if isinstance(kept, Tensor) else kept], y=self.y[kept])

    def join(self, other: Self) -> Self:
        """Return this split with the images of another split of the same data set appended."""
        y = torch.cat([self.y, other.y])
        if self.rows is None or other.rows is None:
            return replace(self, x=torch.cat([self.x, other.x]), y=y)
        return replace(self, rows=torch.cat([self.rows, other.rows]), y=y)
