"""Checks of the arguments of `find_ticket` that need no data: swapped, missing and misspelt ones."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch import Tensor, nn

from crbg.errors import CrbgError, warn
from crbg.training.batches import Batches, LoaderBatches

BATCH = 256  # default batch size
HELD_OUT = 0.1  # default fraction of the examples to hold out


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
    if (layer := _layer(where)) is not None:
        name = next((n for n, m in model.named_modules() if m is layer), "")
        known = rf'; pass `where=r"{name}\..*"` for the weights of {name!r}' if name else ""
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


def warn_of_unused(data: Any, batches: Batches, held: Batches | None, batch: int, held_out: float) -> None:
    """Warn if the user gave a batch size or a fraction to hold out that has no effect on these data.

    Args:
        data: The user's data.
        batches: What they became.
        held: The held-out batches, if any.
        batch: The argument `batch`; the default gives no warning.
        held_out: The argument `validation` if it is a fraction; the default gives no warning.
    """
    if batch != BATCH and isinstance(batches, LoaderBatches) and batches.loader is data:
        warn(f"batch={batch} has no effect, because the data are batches already; set the batch size of the loader")
    if held is None and held_out not in (0.0, HELD_OUT):
        why = "a loader cannot be divided" if isinstance(batches, LoaderBatches) else "these would be too few examples"
        warn(
            f"validation={held_out:g} holds out nothing, because {why}; pass validation data, or the report is on "
            "training batches"
        )
