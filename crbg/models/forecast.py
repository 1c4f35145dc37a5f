"""Recurrent networks for series: `gru_forecast-64` and `lstm_forecast-64`; `-64-64` for two layers. No biases.

The outputs are the next values of a series or, for series with classes, the logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.models.recurrent import kind_and_widths, layers_of

NAMES = r"(lstm|gru)_forecast(-\d+)+"
DATA = ("series",)


class Forecast(nn.Module):
    """A recurrent network whose outputs are computed from its state after the last value of the series."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], widths: list[int], horizon: int) -> None:
        super().__init__()
        self.layers = layers_of(kind, [1, *widths])
        self.out = nn.Linear(widths[-1], horizon, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map series (N, T) to outputs (N, horizon): forecasts or logits.

        Raises:
            CrbgError: the inputs are integers.
        """
        if not x.is_floating_point():
            raise CrbgError("this network takes a series of floats; for text, use a model lstm-WIDTH or gru-WIDTH")
        h = x[..., None]
        for layer in self.layers:
            h, _ = layer(h)
        return self.out(h[:, -1])  # type: ignore[no-any-return]


def build(name: str, in_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a network for series, with one output for each step ahead or each class.

    Raises:
        CrbgError: a width is 0.
    """
    kind, widths = kind_and_widths(name)
    return Forecast(kind, widths, classes)
