"""Hooks that run in every training step: the interface of penalties, controllers and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Row = dict[str, float]


class SearchHook:
    """Hooks that run in every training step and may use several tensors, for example penalties or controllers.

    By default, all methods do nothing. `progress` is the fraction of training that is done: 0 at the first step, just
    below 1 at the last. The state of a hook is part of the checkpoint.
    """

    def before_forward(self, progress: float) -> None:
        """Prepare a step; called before the forward pass."""

    def after_backward(self, progress: float) -> None:
        """Change gradients; called before the optimiser's step."""

    def after_step(self, progress: float) -> None:
        """Inspect or project parameters; called after the optimiser's step."""

    def log(self) -> Row:
        """Return values for the history; called once per epoch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is needed to resume training."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Clip(SearchHook):
    """Clip the gradient norm, computed over all parameters together, to `norm`."""

    def __init__(self, parameters: Sequence[Tensor], norm: float) -> None:
        self.parameters, self.norm = list(parameters), norm

    def after_backward(self, progress: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.norm)
