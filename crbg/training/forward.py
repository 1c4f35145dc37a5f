"""The forward pass on one batch, for training, searches and measurements.

Some functions call the model directly on one plain tensor, such as `crbg.measure.flops`.

A batch is a pair (inputs, labels). The inputs of a plain batch are a tensor or a nested structure of tensors. If the
user gave a function `forward`, the inputs are a `UserBatch`, and this function computes outputs and labels together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from crbg.errors import CrbgError
from crbg.gates.layers import entries
from crbg.training.trees import map_tensors, shapes, tensors

Forward = Callable[[nn.Module, Any], Any]

OWN_LOSS: Any = "the user's function `forward` returned the loss itself"  # takes the place of the labels


@dataclass(frozen=True)
class UserBatch:
    """A batch in the user's own format, with the function that passes it through the model.

    Attributes:
        batch: What the loader returned, on the model's device.
        forward: Function (model, batch) that returns (outputs, labels) or the loss, a scalar.
    """

    batch: Any
    forward: Forward


def outputs_and_labels(
    model: nn.Module, x: Any, y: Any, replaced: Mapping[str, Tensor] | None = None
) -> tuple[Any, Any]:
    """Pass one batch through the model.

    A mapping is passed as keyword arguments, a tuple or list as positional arguments, and anything else as the only
    argument. A `UserBatch` is passed to the user's function.

    Args:
        model: The network.
        x: Inputs.
        y: Labels; ignored for a `UserBatch`.
        replaced: Tensors that replace parameters or buffers of the model during the call, by name.

    Returns:
        Outputs and labels. If the user's function returns the loss, the labels are `OWN_LOSS`.

    Raises:
        CrbgError: the user's function returns neither a pair nor a scalar.
    """
    replaced = None if replaced is None else _by_place(model, replaced)
    if isinstance(x, UserBatch):
        if replaced is None:
            return _pair(x.forward(model, x.batch))
        named = {f"model.{name}": t for name, t in replaced.items()}
        return _pair(functional_call(_UserForward(model, x.forward), named, (x.batch,), tie_weights=False))
    arguments = () if isinstance(x, Mapping) else tuple(x) if isinstance(x, tuple | list) else (x,)
    keywords = dict(x) if isinstance(x, Mapping) else {}
    if replaced is None:
        return model(*arguments, **keywords), y
    return functional_call(model, replaced, arguments, keywords, tie_weights=False), y


def _by_place(model: nn.Module, replaced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the replacements with one name for each place of a tied tensor.

    With `tie_weights=True`, `functional_call` replaces a tensor twice if its module has two names, and then restores
    the replacement instead of the tensor.
    """
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    new = {id(every[name]): t for name, t in replaced.items() if name in every}
    found = {name: t for name, t in replaced.items() if name not in every}
    return found | {name: new[id(tensor)] for name, _, _, tensor in entries(model) if id(tensor) in new}


class _UserForward(nn.Module):
    """A module around the user's function, because `functional_call` replaces tensors of modules only."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.function = model, forward

    def forward(self, batch: Any) -> Any:
        return self.function(self.model, batch)


def _pair(returned: Any) -> tuple[Any, Any]:
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return returned.reshape(()), OWN_LOSS
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    what = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
    raise CrbgError(f"forward must return (outputs, labels) or the loss, a scalar tensor; it returned {what}")


def for_any_outputs(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return a loss that also takes output objects and the loss that the user's function `forward` computed.

    A loss of `torch.nn` takes tensors only, so it is given the logits in an output object. Any other function is given
    the outputs unchanged. The attribute `__wrapped__` of the returned function is `loss`.
    """
    of_torch = getattr(loss, "__module__", "").startswith("torch.nn")

    def total(out: Any, y: Any) -> Tensor:
        if y is OWN_LOSS:
            return out  # type: ignore[no-any-return]
        if of_torch and not isinstance(out, Tensor):
            if (chosen := logits(out)) is None:
                raise CrbgError(
                    f"the loss needs one tensor, but the outputs are {shapes(out)}; choose one with `forward`, for "
                    "example `forward=lambda model, batch: (model(batch[0])[0], batch[1])`"
                )
            out = chosen
        return loss(out, y)

    total.__wrapped__ = loss  # type: ignore[attr-defined]
    return total


def logits(out: Any) -> Tensor | None:
    """Return the tensor of logits or predictions in a model's outputs.

    It is the outputs themselves, their attribute or entry `logits`, or the only floating-point tensor in them. None
    means that the outputs contain no or several such tensors.
    """
    if isinstance(out, Tensor):
        return out
    named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(named, Tensor):
        return named
    found = [t for t in tensors(out) if t.is_floating_point()]
    return found[0] if len(found) == 1 else None


def with_logits(change: Callable[[Tensor], Tensor], out: Any) -> Any:
    """Return a model's outputs with `change` applied to the tensor that `logits` returns.

    Raises:
        CrbgError: the outputs contain no or several such tensors.
    """
    chosen = logits(out)
    if chosen is None:
        raise CrbgError(
            f"the outputs, a {type(out).__name__}, do not contain exactly one floating-point tensor, so their scale "
            "cannot be changed; return the logits from `forward`"
        )
    return map_tensors(lambda t: change(t) if t is chosen else t, out)


def batch_size(x: Any, y: Any) -> int:
    """Return the number of examples in a batch: the length of the labels, or of the first tensor of the inputs."""
    for tree in (y, x.batch if isinstance(x, UserBatch) else x):
        for t in tensors(tree):
            if t.ndim:
                return len(t)
    return 1
