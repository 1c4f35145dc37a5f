"""Evaluate each gate once per forward pass of a model, also while gradient checkpointing repeats parts of it.

Layers such as `nn.MultiheadAttention` and `nn.LSTMCell` read a weight several times in one pass. All reads have to see
the same sample of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn


def in_backward() -> bool:
    """Return whether a backward pass runs now. A forward pass inside it is a recomputation by checkpointing."""
    return bool(torch._C._current_graph_task_id() != -1)


class Scope:
    """The values that the gates of one model have in the current forward pass.

    A pass begins and ends with the forward hooks `enter` and `leave` of the model. A backward pass in which gradient
    checkpointing repeats forward passes counts as one pass, too.

    Attributes:
        recomputed: Whether a gate was evaluated in a backward pass.
    """

    def __init__(self) -> None:
        self.depth, self.task, self.values = 0, -1, dict[Hashable, Tensor]()
        self.recomputed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Scope:
        memo[id(self)] = copied = Scope()
        return copied

    def attach(self, module: nn.Module) -> None:
        """Let the forward passes of a module open this scope."""
        if not any(getattr(hook, "__self__", None) is self for hook in module._forward_pre_hooks.values()):
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.leave, always_call=True)

    @staticmethod
    def of(module: nn.Module) -> Scope | None:
        """Return the scope that a module's forward passes open, if there is one."""
        owners = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, Scope)), None)

    @staticmethod
    def detach(module: nn.Module) -> None:
        """Remove the hooks of all scopes from a module."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), Scope):
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)

    def enter(self, module: nn.Module, _: Any) -> None:
        """Begin a forward pass."""
        if not self.depth and not in_backward():
            self.values.clear()
        self.depth += 1

    def leave(self, module: nn.Module, _: Any, __: Any) -> None:
        """End a forward pass."""
        self.depth -= 1
        if not self.depth and not in_backward():
            self.values.clear()

    def once(self, key: tuple[Hashable, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return `make()`, or its earlier result in this pass; outside a pass, every call evaluates it."""
        if torch.compiler.is_compiling():
            return make()
        if in_backward():
            self.recomputed = True
            if self.task != (task := torch._C._current_graph_task_id()):
                self.task = task
                self.values.clear()
        elif not self.depth:
            return make()
        # Reentrant checkpointing runs the first forward pass without gradients.
        full = (*key, torch.is_grad_enabled())
        if full not in self.values:
            self.values[full] = make()
        return self.values[full]
