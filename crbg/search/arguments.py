"""Checks of the arguments of `find_ticket` that need no batch: swapped, missing, misspelt or out of range."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor, nn

from crbg.errors import CrbgError, suggest, warn
from crbg.gates.layers import unwrap
from crbg.training.batches import Batches, LoaderBatches

BATCH = 256  # default batch size
HELD_OUT = 0.1  # default fraction of the examples to hold out
OTHER_NAMES = {  # arguments of other libraries, and what to use instead
    "batch_size": "`batch`",
    "sparsity": "`density`, which is 1 - sparsity",
    "learning_rate": "`lr`, an option of the methods that train gates",
    "criterion": "`loss`",
    "loss_fn": "`loss`",
    "device": "`model.to(device)` before the call",
    "optimizer": "the options of the method; its optimiser is fixed",
    "optimiser": "the options of the method; its optimiser is fixed",
    "verbose": "`progress`",
    "metrics": "`metric`, one function of (outputs, labels)",
    "num_epochs": "`epochs`",
    "n_epochs": "`epochs`",
    "val_data": "`validation`",
    "validation_data": "`validation`",
    "units": "`granularity='unit'`, an option of `crbg`",
    "structured": "`granularity='unit'`, an option of `crbg`",
    "resume": "`crbg run` of the command line; this function writes no checkpoints",
    "checkpoint": "`crbg run` of the command line; this function writes no checkpoints",
}


def check_arguments(model: Any, data: Any, density: Any, loss: Any, metric: Any, where: Any) -> None:
    """Check the types of the arguments of `find_ticket`.

    Raises:
        CrbgError: an argument has the wrong type; the message states what to pass.
    """
    if not isinstance(model, nn.Module):
        raise CrbgError(_no_model(model, data))
    if (isinstance(density, Tensor | np.ndarray) and density.ndim) or hasattr(density, "to_numpy"):
        raise CrbgError(
            "the third argument is the density, but it is an array; pass inputs and labels as one pair: "
            "`find_ticket(model, (inputs, labels), density)`"
        )
    if isinstance(loss, type):
        raise CrbgError(f"loss is the class {loss.__name__}; pass an instance: `loss=nn.{loss.__name__}()`")
    if not callable(loss):
        raise CrbgError(
            f"loss {loss!r} is no function; pass a function of (outputs, labels), for example "
            "`loss=nn.functional.mse_loss`"
        )
    if getattr(loss, "reduction", "mean") == "sum":
        warn('the loss is the sum over the batch, but the search expects the mean; use `reduction="mean"`')
    if metric is not None and (isinstance(metric, type) or not callable(metric)):
        raise CrbgError(f"metric {metric!r} is no function; pass a function of (outputs, labels) that returns a number")
    if where is not None and not callable(where) and not isinstance(where, str | list | tuple | set):
        raise CrbgError(f"where {where!r} is neither a name, a list of names nor a function of (name, weight)")
    if (layer := _layer(where)) is not None:
        name = next((n for n, m in unwrap(model).named_modules() if m is layer), "")
        known = rf'; pass `where=r"{re.escape(name)}\..*"` for the weights of {name!r}' if name else ""
        raise CrbgError(f"where takes names of weights, but it contains a {type(layer).__name__}{known}")


def _no_model(model: Any, data: Any) -> str:
    if isinstance(data, nn.Module):
        return "the model and the data are swapped; call `find_ticket(model, data, density)`"
    if isinstance(model, type):
        return f"the model is the class {model.__name__}; pass an instance of it"
    what = "a function" if inspect.isroutine(model) else f"a {type(model).__name__}"
    return f"the model must be an nn.Module, but it is {what}; wrap other models in a subclass of nn.Module"


def _layer(where: Any) -> nn.Module | None:
    if isinstance(where, nn.Module):
        return where
    if isinstance(where, list | tuple | set):
        return next((m for m in where if isinstance(m, nn.Module)), None)
    return None


def plain_options(
    method: str, given: Mapping[str, Any], known: Collection[str], call: Callable[..., Any]
) -> dict[str, Any]:
    """Return the options of the method as plain values.

    Args:
        method: Name of the method.
        given: The options that the user gave.
        known: The options of the method.
        call: The function that takes the options, for suggestions of its other parameters.

    Raises:
        CrbgError: an option is unknown; the message suggests the nearest option or parameter.
    """
    for name in (n for n in given if n not in known):
        if name in OTHER_NAMES:
            raise CrbgError(f"find_ticket has no argument {name!r}; use {OTHER_NAMES[name]}")
        own = [n for n, p in inspect.signature(call).parameters.items() if p.kind is not p.VAR_KEYWORD]
        raise CrbgError(
            f"find_ticket and its method {method} have no argument {name!r}: "
            f"{suggest(name, [*own, *known], cutoff=0.7)}; `crbg list methods {method}` explains the options"
        )
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}


def density_of(density: Any) -> float | None:
    """Return the density as a number, or None if the method determines it.

    Raises:
        CrbgError: it is missing (`...`), no number, or not in (0, 1].
    """
    if density is None:
        return None
    if density is ...:
        raise CrbgError("pass `density`, the fraction of weights to keep (0.1 for a sparsity of 90 %)")
    if isinstance(density, bool) or not isinstance(density, Real):
        raise CrbgError(f"density {density!r} is not a number; density = kept / total, sparsity = 1 - density")
    # The shortest text of a float32 is the number that was meant; its value in float64 has more digits.
    value = float(str(density)) if isinstance(density, np.floating) else float(density)
    if not 0 < value <= 1:
        percent = f"; for {value:g} %, pass {value / 100:g}" if 1 < value <= 100 else ""
        raise CrbgError(f"density {value} is not in (0, 1]{percent}; density = kept / total, sparsity = 1 - density")
    return value


def whole(name: str, value: Any, least: int) -> int:
    """Return the argument `name` as an integer; it may be a scalar of NumPy.

    Raises:
        CrbgError: it is no whole number, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise CrbgError(f"{name} {value!r} must be a whole number of at least {least}")
    return number


def warn_of_unused(
    data: Any, batches: Batches, held: Batches | None, batch: int, held_out: float, steps: int | None = None
) -> None:
    """Warn if the user gave a batch size, a fraction to hold out, or steps that have no effect on these data.

    Args:
        data: The user's data.
        batches: What they became.
        held: The held-out batches, if any.
        batch: The argument `batch`; the default gives no warning.
        held_out: The argument `validation` if it is a fraction; the default gives no warning.
        steps: The argument `steps`.
    """
    if steps is not None and not isinstance(batches, LoaderBatches):
        warn(f"steps={steps} has no effect, because the data have a length; use `epochs` and `batch`")
    if batch != BATCH and isinstance(batches, LoaderBatches) and batches.loader is data:
        warn(f"batch={batch} has no effect, because the data are batches already; set the batch size of the loader")
    if held is None and held_out not in (0.0, HELD_OUT):
        why = "a loader cannot be divided" if isinstance(batches, LoaderBatches) else "these would be too few examples"
        warn(
            f"validation={held_out:g} holds out nothing, because {why}; pass validation data, or the report is on "
            "training batches"
        )
