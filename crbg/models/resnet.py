"""Residual networks for small images (He et al. 2016, section 4.2): `resnet20`, `resnet32`, ... with 6 n + 2 layers.

Shortcuts that change the shape are 3x3 convolutions with batch norm, as in Concrete Ticket Search (291 376 weights in
resnet20); `shortcut=1` uses 1x1 convolutions, as other implementations do (270 896 weights). Batch norm has gains and
shifts only with `affine=True`, for methods that train them. `width` multiplies the channel counts 16, 32 and 64.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from crbg.errors import CrbgError

NAMES = r"resnet(20|32|44|56|110)"


class Block(nn.Module):
    """A residual block of two 3x3 convolutions: relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, inner: int, outer: int, stride: int, shortcut: int, affine: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1, self.act1 = nn.BatchNorm2d(outer, affine=affine), nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(outer, affine=affine), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            change = nn.Conv2d(inner, outer, shortcut, stride, shortcut // 2, bias=False)
            self.shortcut = nn.Sequential(change, nn.BatchNorm2d(outer, affine=affine))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, inner, H, W) to (N, outer, H / stride, W / stride)."""
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))  # type: ignore[no-any-return]


def build(
    name: str, in_shape: tuple[int, ...], classes: int, shortcut: int = 3, width: float = 1.0, affine: bool = False
) -> nn.Module:
    """Build the network; its stages are called stage1, stage2 and stage3, and its head fc.

    Raises:
        CrbgError: `shortcut` is neither 1 nor 3, or a layer would have no channels.
    """
    if shortcut not in (1, 3):
        raise CrbgError(f"model_args.shortcut, the kernel size of shortcuts, must be 1 or 3, not {shortcut!r}")
    widths = [round(w * width) for w in (16, 32, 64)]
    if min(widths) < 1:
        raise CrbgError(f"{name} with width {width} has layers without channels; use a larger width")
    blocks = (int(re.sub(r"\D", "", name)) - 2) // 6
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(in_shape[0], widths[0], 3, padding=1, bias=False))
    net.add_module("norm", nn.BatchNorm2d(widths[0], affine=affine))
    net.add_module("act", nn.ReLU())
    inner = widths[0]
    for i, outer in enumerate(widths, start=1):
        stage = [
            Block(inner if j == 0 else outer, outer, 2 if i > 1 and j == 0 else 1, shortcut, affine)
            for j in range(blocks)
        ]
        net.add_module(f"stage{i}", nn.Sequential(*stage))
        inner = outer
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(inner, classes, bias=False))
    return net
