"""VGG for small images (Simonyan & Zisserman 2015, as used on CIFAR): `vgg11`, `vgg13`, `vgg16`, `vgg19`.

The networks consist of 3x3 convolutions with batch norm, four 2x2 max-pooling layers, global average pooling and one
linear layer. The convolutions of vgg16 have 14 710 464 weights for colour images. Batch norm has gains and shifts only
with `affine=True`, for methods that train them. `width` multiplies the channel counts 64 to 512.
"""

from __future__ import annotations

from torch import nn

from crbg.errors import CrbgError

NAMES = r"vgg(11|13|16|19)"
STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def build(name: str, in_shape: tuple[int, ...], classes: int, width: float = 1.0, affine: bool = False) -> nn.Module:
    """Build the network; its convolutions are called conv1, conv2, ..., and its head fc.

    Raises:
        CrbgError: the images are smaller than 16 x 16 pixels, or a layer would have no channels.
    """
    channels, *size = in_shape
    widths = [round(w * width) for w in (64, 128, 256, 512, 512)]
    if min(size) < 16 or min(widths) < 1:
        raise CrbgError(
            f"{name} with width {width} cannot take images of shape {in_shape}: it needs at least 16 x 16 pixels, and "
            "every layer at least one channel"
        )
    net, number = nn.Sequential(), 0
    for i, (depth, w) in enumerate(zip(STAGES[name], widths, strict=True), start=1):
        for _ in range(depth):
            number += 1
            net.add_module(f"conv{number}", nn.Conv2d(channels, w, 3, padding=1, bias=False))
            net.add_module(f"norm{number}", nn.BatchNorm2d(w, affine=affine))
            net.add_module(f"act{number}", nn.ReLU())
            channels = w
        if i < len(widths):
            net.add_module(f"pool{i}", nn.MaxPool2d(2))
    net.add_module("average", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(channels, classes, bias=False))
    return net
