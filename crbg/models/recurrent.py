"""Recurrent networks for text: `lstm-256` and `gru-256`; `-256-256` for two layers.

There are no biases. Every window starts with the state 0. Embeddings carry no gates by default, and frozen entries
cannot grow from their small initial values (`crbg.models.initial_weights.initialise`). Each embedding is therefore
divided by its root mean square: its entries have unit variance, whatever their scale.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from crbg.errors import CrbgError
from crbg.models._widths import check_widths

NAMES = r"(lstm|gru)(-\d+)+"
DATA = ("text",)


class Characters(nn.Module):
    """A recurrent network that predicts the next character at each position of a window."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], widths: list[int], classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, widths[0])
        self.layers = layers_of(kind, [widths[0], *widths])
        self.out = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map characters (N, T), int64, to logits (N, classes, T).

        Raises:
            CrbgError: the inputs are no integers.
        """
        if x.is_floating_point():
            raise CrbgError("this network takes characters, not numbers; for a series, use a model gru_forecast-WIDTH")
        h = nn.functional.rms_norm(self.embedding(x), (self.embedding.embedding_dim,))
        for layer in self.layers:
            h, _ = layer(h)
        return self.out(h).transpose(1, 2)  # type: ignore[no-any-return]


def layers_of(kind: type[nn.LSTM | nn.GRU], widths: list[int]) -> nn.ModuleList:
    """Return recurrent layers of the given widths, the first of which is that of the inputs."""
    return nn.ModuleList(kind(a, b, bias=False, batch_first=True) for a, b in itertools.pairwise(widths))


def build(name: str, in_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a network for text, with one output for each character.

    Raises:
        CrbgError: a width is 0.
    """
    kind, widths = kind_and_widths(name)
    return Characters(kind, widths, classes)


def kind_and_widths(name: str) -> tuple[type[nn.LSTM | nn.GRU], list[int]]:
    """Parse the name of a recurrent network.

    Raises:
        CrbgError: a width is 0.
    """
    kind, *sizes = name.split("-")
    widths = list(map(int, sizes))
    check_widths(name, widths)
    return (nn.LSTM if kind.startswith("lstm") else nn.GRU), widths
