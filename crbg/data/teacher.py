"""A linear target for networks with random weights: ridge regression of the classes of handwritten digits.

The inputs are scikit-learn's digits, averaged over blocks of 2 x 2 pixels: 16 numbers in [0, 1]. The targets are the
ten outputs of a linear map without bias. It is fitted to the one-hot classes of the training digits, divided by the
standard deviation of its outputs, and rounded to multiples of 2^-10. A mean squared error is therefore a multiple of
the targets' variance. Inputs are multiples of 2^-6, so the targets are the same on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from crbg.data.datasets import DataInfo
from crbg.data.images import ImagePart
from crbg.data.parts import Data, TensorPart, digest_of

STRENGTH = 1.0  # of the ridge penalty
STEP = 2.0**-10


def load(entry: DataInfo, root: Path, download: bool = True) -> Data:
    """Generate `linear_teacher`; the parts are those of `digits`."""
    from crbg.data.sources import load as load_images

    digits = load_images("digits", str(root), download)
    images = [cast(ImagePart, part) for part in (digits.train, digits.validation, digits.test)]
    x = [pooled(part) for part in images]
    matrix = fitted(x[0], images[0].y)
    train, validation, test = (TensorPart(part.float(), (part @ matrix).float()) for part in x)
    parts = (train, validation, test)
    return Data(entry.name, *parts, entry.classes, digest_of(parts), metric=entry.metric)


def pooled(part: ImagePart) -> Tensor:
    """Return the mean of each block of 2 x 2 pixels of the digits, shape (N, 16), float64."""
    images = part.x[:, 0, 2:26:3, 2:26:3].double()  # each pixel of the 8 x 8 digits is a block of 3 x 3 in the images
    levels = (images * 16 / 255).round()
    return levels.reshape(-1, 4, 2, 4, 2).sum((2, 4)).flatten(1) / 64


def fitted(x: Tensor, y: Tensor) -> Tensor:
    """Fit the linear map to the one-hot classes of the training digits; shape (inputs, classes), float64."""
    wanted = torch.nn.functional.one_hot(y).double()
    gram = x.T @ x + STRENGTH * torch.eye(x.shape[1], dtype=torch.double)
    matrix = torch.linalg.solve(gram, x.T @ wanted)
    return cast(Tensor, (matrix / (x @ matrix).std() / STEP).round() * STEP)
