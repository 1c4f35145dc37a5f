"""Hooks of a training step, the interface of controllers and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Row = dict[str, float]


class SearchHook:
    """Hooks of a training step, for work across tensors: penalties, controllers, annealing, global thresholds.

    All methods do nothing by default. `progress` is the share of the training that is done, from 0 at the first step
    towards 1 at the last. The state of a hook is part of the checkpoint.
    """

    def before_forward(self, progress: float) -> None:
        """Prepare a step, before the forward pass."""

    def after_backward(self, progress: float) -> None:
        """Change gradients, before the optimiser's step."""

    def after_step(self, progress: float) -> None:
        """Inspect or project parameters, after the optimiser's step."""

    def log(self) -> Row:
        """Return values for the history; called once per epoch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed training needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Clip(SearchHook):
    """Clip the norm of the gradient, taken over all parameters together, to `norm`."""

    def __init__(self, parameters: Sequence[Tensor], norm: float) -> None:
        self.parameters, self.norm = list(parameters), norm

    def after_backward(self, progress: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.norm)
