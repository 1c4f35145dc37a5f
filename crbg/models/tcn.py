"""Temporal convolutional networks for series (Bai et al. 2018), named by channels and levels: `tcn-32x4`.

Each level is a causal convolution of kernel 3, followed by a ReLU. The dilation is 1 in the first level and doubles
from level to level. From the second level on, the input of a level is added to its output. The linear head reads the
last time step, which depends on the last 2^(levels + 1) - 1 values of the series: 31 for `tcn-32x4`. Earlier values of
a longer window are not used; a shorter window is preceded by zeros.

Layers have no biases, and there is no normalisation. With weights from `kaiming_normal` of scale 1, the mean square of
the features grows by a factor of 2 to 3 with each level after the first; with scale 0.5, by less than 2.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from crbg.errors import CrbgError

NAMES = r"tcn-\d+x\d+"
DATA = ("series",)
KERNEL = 3


class Level(nn.Module):
    """A dilated convolution and a ReLU; if the number of channels stays the same, the input is added to the output."""

    def __init__(self, inner: int, outer: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, outer, KERNEL, dilation=dilation, bias=False)
        self.act = nn.ReLU()
        self.residual = inner == outer

    def forward(self, h: Tensor) -> Tensor:
        """Map features (N, inner, T) to those of the last time steps, (N, outer, T - 2 dilation)."""
        new = cast(Tensor, self.act(self.conv(h)))
        return new + h[:, :, -new.shape[2] :] if self.residual else new


class TCN(nn.Module):
    """The network. Only the features that the last time step depends on are computed, so there is no padding."""

    def __init__(self, channels: int, levels: int, horizon: int) -> None:
        super().__init__()
        self.seen = 1 + (KERNEL - 1) * (2**levels - 1)
        self.levels = nn.Sequential(*(Level(channels if i else 1, channels, 2**i) for i in range(levels)))
        self.fc = nn.Linear(channels, horizon, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map windows (N, T) to forecasts (N, horizon)."""
        x = x[:, -self.seen :]
        x = nn.functional.pad(x, (self.seen - x.shape[1], 0))
        return cast(Tensor, self.fc(self.levels(x[:, None])[:, :, -1]))


def build(name: str, in_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the network for windows of shape (length,) and forecasts of `classes` values.

    Raises:
        CrbgError: the inputs are no series, there is no channel or no level, or there are more levels than it takes to
            see the whole window.
    """
    if len(in_shape) != 1:
        raise CrbgError(f"{name} takes a series of shape (length,), not inputs of shape {in_shape}")
    channels, levels = map(int, name.removeprefix("tcn-").split("x"))
    most = max(1, in_shape[0].bit_length() - 1)
    if channels < 1 or not 1 <= levels <= most:
        raise CrbgError(
            f"model {name!r}: for windows of {in_shape[0]} values, choose at least 1 channel and 1 to {most} levels"
        )
    return TCN(channels, levels, classes)
