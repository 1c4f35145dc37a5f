"""Hooks of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Row = dict[str, float]


class SearchHook:
    """Hooks of a step, for what needs more than one tensor at a time: penalties, controllers, annealing, global choices."""

    def before_forward(self, progress: float) -> None:
        """Prepare a step; `progress` runs from 0 at the first step towards 1 at the last."""

    def after_backward(self, progress: float) -> None:
        """Change gradients before the optimiser sees them."""

    def after_step(self, progress: float) -> None:
        """Look at, or project, what the optimiser made."""

    def log(self) -> Row:
        """Give numbers for the history, once an epoch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything the hooks carry from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""


class Clip(SearchHook):
    """Clip the norm of the gradient over all parameters together."""

    def __init__(self, parameters: Sequence[Tensor], norm: float) -> None:
        self.parameters, self.norm = list(parameters), norm

    def after_backward(self, progress: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.norm)
