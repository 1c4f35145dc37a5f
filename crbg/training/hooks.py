"""Hooks that run in every training step: the interface of penalties, controllers and schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from crbg.training.model_state import copied_tensors, put_tensors

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


class Around(SearchHook):
    """A hook around another one, which it calls in every step; subclasses add to single calls."""

    def __init__(self, inner: SearchHook) -> None:
        self.inner = inner

    def before_forward(self, progress: float) -> None:
        self.inner.before_forward(progress)

    def after_backward(self, progress: float) -> None:
        self.inner.after_backward(progress)

    def after_step(self, progress: float) -> None:
        self.inner.after_step(progress)

    def log(self) -> Row:
        return self.inner.log()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)


class KeepBest(SearchHook):
    """Keep a copy of the model of the epoch with the largest value of `validate` (early stopping)."""

    def __init__(self, model: nn.Module, validate: Callable[[nn.Module], float]) -> None:
        self.model, self.validate = model, validate
        self.best, self.tensors = -math.inf, dict[str, Tensor]()

    def log(self) -> Row:
        value = self.validate(self.model)
        if not self.tensors or value > self.best:
            self.best = value
            self.tensors = copied_tensors(self.model)
        return {"validation": value}

    def restore(self) -> None:
        """Load the best epoch into the model."""
        put_tensors(self.model, self.tensors)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "tensors": self.tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.tensors = float(state["best"]), dict(state["tensors"])


class Clip(SearchHook):
    """Clip the gradient norm, computed over all parameters together, to `norm`."""

    def __init__(self, parameters: Sequence[Tensor], norm: float) -> None:
        self.parameters, self.norm = list(parameters), norm

    def after_backward(self, progress: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.norm)
