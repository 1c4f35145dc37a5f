"""Gates on `nn.RNN`, `nn.GRU` and `nn.LSTM`, which keep a second list of their weights for cuDNN.

torch refers to the weights of these layers by name and in the list `_flat_weights`, which the forward pass reads. While
a layer has gates, the list is computed from the names in each pass, so that it contains the gated weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def read_gated(layer: nn.RNNBase) -> None:
    """Let the forward pass of a recurrent layer with parametrisations read its weights by name.

    Only the class that torch made for this layer changes; it disappears when the last gate is removed. Until then, the
    weights are not moved to one block of memory, as cuDNN prefers.
    """
    kind: Any = type(layer)
    kind._flat_weights = property(_by_name, _ignore)
    for name in ("_init_flat_weights", "_update_flat_weights", "flatten_parameters"):
        setattr(kind, name, _nothing)


def _by_name(layer: Any) -> list[Any]:
    return [getattr(layer, name, None) for name in layer._flat_weights_names]


def _ignore(layer: Any, value: Any) -> None:
    """Ignore an assignment to `_flat_weights`."""


def _nothing(layer: Any) -> None:
    """Stand in for methods that maintain `_flat_weights`."""
