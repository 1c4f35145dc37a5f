"""Examples on which an exported ticket is checked, and the comparison of its outputs with those of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.measure.accuracy import eval_mode

if TYPE_CHECKING:
    from crbg.ticket import Ticket

LIMIT = 1000  # examples in a check


@dataclass(frozen=True)
class Examples:
    """Examples of one data set.

    Attributes:
        name: Name of the data set and its split.
        inputs: Inputs of the network, float32 (N, channels, height, width).
        labels: Classes, int64 (N,).
    """

    name: str
    inputs: Tensor
    labels: Tensor

    @classmethod
    def load(cls, name: str, ticket: Ticket, data_dir: str | None = None) -> Examples:
        """Load the first validation images of a data set, at the input size of a ticket's network.

        Raises:
            CrbgError: the network is not in the registry, the data set is missing, or its images do not fit the
                network.
        """
        if not ticket.model_name:
            raise CrbgError("the ticket is for a network outside the registry, which cannot be checked on a data set")
        data, title = load(name, data_dir), f"{name}, validation"
        if data.in_shape != ticket.in_shape and ticket.in_shape[1:] == ticket.in_shape[1:2] * 2:
            data = data.sized(ticket.in_shape[1])
            title += f", resized to {ticket.in_shape[1]} x {ticket.in_shape[2]}"
        if (data.in_shape, data.classes) != (ticket.in_shape, ticket.classes):
            raise CrbgError(
                f"{name} has {data.classes} classes and inputs of shape {data.in_shape}, but the ticket's network has "
                f"{ticket.classes} classes and inputs of shape {ticket.in_shape}; name the data of the ticket"
            )
        return cls(title, *data.validation.batch(slice(LIMIT)))


@torch.no_grad()
def predictions(model: nn.Module, inputs: Tensor, batch: int = 100) -> Tensor:
    """Return the logits of a network in eval mode, float32 (N, classes)."""
    with eval_mode(model):
        return torch.cat([model(inputs[i : i + batch]) for i in range(0, len(inputs), batch)]).float()


def compare(examples: Examples, expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Compare the logits of an exported network with those of the original network.

    Args:
        examples: The examples.
        expected: Logits of the original network, (N, classes).
        found: Logits of the exported network, (N, classes).

    Returns:
        Number of examples, number of equal predictions, largest absolute difference of a logit, and both accuracies in
        per cent.

    Raises:
        CrbgError: a prediction differs.
    """
    before, after = expected.argmax(1), found.argmax(1)
    equal, count = int((before == after).sum()), len(before)
    if equal < count:
        raise CrbgError(f"only {equal} of {count} predictions on {examples.name} equal those of the ticket's network")
    return {
        "data": examples.name,
        "examples": count,
        "equal_predictions": equal,
        "largest_difference": float((expected - found).abs().max()),
        "accuracy": 100.0 * int((before == examples.labels).sum()) / count,
        "accuracy_exported": 100.0 * int((after == examples.labels).sum()) / count,
    }
