"""The target `shrunk`: the network without its dead units, as a program of `torch.export`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crbg.errors import CrbgError, innermost, reason
from crbg.export import onnx
from crbg.export.check import Examples, compare, predictions
from crbg.export.dead_units import shrink
from crbg.export.inputs import arguments, dynamic_shapes, first_output, rows, worst_difference
from crbg.export.timing import measure
from crbg.ticket import Ticket
from crbg.training.trees import tensors

FILE = "model.pt2"
TOLERANCE = 1e-6  # in float32, relative to the largest output


def write(ticket: Ticket, folder: Path, draw: str | None) -> dict[str, Any]:
    """Cut out the dead units, write the network with a dynamic batch size, and compare the loaded file with it."""
    model, example = ticket.model().eval(), onnx.example_of(ticket)
    small = shrink(model, None, example).eval()
    save(small, example, folder / FILE)
    worst = worst_difference(small, loaded(folder / FILE), example)
    if not worst <= TOLERANCE:
        raise CrbgError(f"the outputs of the written file differ by {worst:.2g} of the largest output")
    return {"parameters before": _count(model), "parameters": _count(small), "largest relative difference": worst}


def save(model: nn.Module, example: Any, path: Path) -> None:
    """Write a network in eval mode with `torch.export`, with a dynamic batch size.

    Raises:
        CrbgError: `torch.export` cannot trace the network.
    """
    args, keywords = arguments(rows(example, 2))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they concern the code of torch.export
            torch.export.save(torch.export.export(model, args, keywords, dynamic_shapes=dynamic_shapes(example)), path)
    except Exception as error:  # of many types, depending on the operation that fails
        raise CrbgError(f"torch.export cannot trace {type(model).__name__}: {reason(innermost(error))}") from error


def loaded(path: Path) -> Callable[[Any], list[Tensor]]:
    """Return a function that runs a written network."""
    module = torch.export.load(path).module()

    def run(x: Any) -> list[Tensor]:
        args, keywords = arguments(x)
        with torch.no_grad():
            return list(tensors(module(*args, **keywords)))

    return run


def check(ticket: Ticket, folder: Path, examples: Examples) -> dict[str, Any]:
    """Compare the predictions of the written network with those of the ticket's network."""
    run = loaded(folder / FILE)
    found = first_output(run, examples.inputs)
    return compare(examples, predictions(ticket.model(), examples.inputs), found)


def bench(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Measure the network with and without its dead units; see `crbg.export.measure`."""
    model, example = ticket.model().eval(), onnx.example_of(ticket)
    return measure({"with dead units": model, "without": shrink(model, None, example).eval()}, example)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
