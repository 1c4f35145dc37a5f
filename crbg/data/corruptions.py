"""Corruptions of images, to measure how much accuracy a network keeps on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms import functional as images

from crbg import rng
from crbg.data.images import ImagePart

BLOCK = 1000  # images to corrupt at a time


def corrupted(part: ImagePart, name: str) -> ImagePart:
    """Return a split with corrupted images of 8 bits. The random parts depend on the positions of the images only.

    Args:
        part: The split.
        name: One of `CORRUPTIONS`.
    """
    change = CORRUPTIONS[name]
    blocks = [change(part.pixels(slice(i, i + BLOCK)).float() / 255, i) for i in range(0, len(part), BLOCK)]
    pixels = torch.cat([b.clamp(0, 1).mul(255).round().to(torch.uint8) for b in blocks])
    return replace(part, x=pixels, rows=None)


def _noise(x: Tensor, first: int) -> Tensor:
    noise = torch.from_numpy(rng.normal(x.numel(), first, "corruption", "noise")).to(x)
    return x + 0.2 * noise.reshape(x.shape)


def _blur(x: Tensor, first: int) -> Tensor:
    blurred: Tensor = images.gaussian_blur(x, [7, 7], [1.0, 1.0])
    return blurred


def _shift(x: Tensor, first: int) -> Tensor:
    """Move each image by 3 pixels up, down, left or right; the free edge is black."""
    direction = (rng.integers(len(x), first, "corruption", "shift") % 4).astype(int)
    out = torch.empty_like(x)
    for i, (down, right) in enumerate(((3, 0), (-3, 0), (0, 3), (0, -3))):
        mine = torch.from_numpy(direction == i).to(x.device)
        out[mine] = images.affine(x[mine], 0.0, [right, down], 1.0, [0.0, 0.0])
    return out


def _contrast(x: Tensor, first: int) -> Tensor:
    faded: Tensor = images.adjust_contrast(x, 0.3)
    return faded


def _occlusion(x: Tensor, first: int) -> Tensor:
    """Cover a square of 2 / 7 of the image's edge length, at a random place, with black."""
    height, width = x.shape[2:]
    edge = round(min(height, width) * 2 / 7)
    at = rng.integers(2 * len(x), first, "corruption", "occlusion").reshape(-1, 2)
    top, left = ((at[:, i] % (n - edge + 1)).astype(int) for i, n in enumerate((height, width)))
    out = x.clone()
    for i, (up, side) in enumerate(zip(top, left, strict=True)):
        out[i, :, up : up + edge, side : side + edge] = 0
    return out


# Functions of pixels in [0, 1], (n, C, H, W), and of the position of the first image, which seeds the random ones.
CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": _noise,  # Gaussian, standard deviation 0.2
    "blur": _blur,  # Gaussian, sigma 1 pixel
    "shift": _shift,
    "contrast": _contrast,  # 30 % of the contrast
    "occlusion": _occlusion,
}
