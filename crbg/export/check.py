"""Examples on which an exported ticket is checked, and the comparison of its outputs with those of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crbg.data.metrics import ACCURACY, MSE, Metric
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.measure.accuracy import eval_mode

if TYPE_CHECKING:
    from crbg.ticket import Ticket

LIMIT = 1000  # examples in a check
CLOSE = 1e-5  # allowed difference of the outputs of a regression, relative to the largest output


@dataclass(frozen=True)
class Examples:
    """Examples of one data set.

    Attributes:
        name: Name of the data set and its part.
        inputs: Inputs of the network: a tensor whose first axis has one entry for each example, or a tuple of tensors.
        labels: Classes, int64 (N, ...), or the targets of a regression.
        metric: The metric of the data set.
    """

    name: str
    inputs: Any
    labels: Tensor
    metric: Metric = ACCURACY

    @classmethod
    def load(cls, name: str, ticket: Ticket, data_dir: str | None = None) -> Examples:
        """Load the first validation examples of a data set, images at the input size of a ticket's network.

        Raises:
            CrbgError: the network is not in the registry, the data set is missing, or its inputs do not fit the
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
        return cls(title, *data.validation.batch(slice(LIMIT)), data.metric)


@torch.no_grad()
def predictions(model: nn.Module, inputs: Any, batch: int = 100) -> Tensor:
    """Return the outputs of a network in eval mode, float32 (N, outputs, ...); a tuple of inputs is one batch."""
    with eval_mode(model):
        if isinstance(inputs, tuple):
            return model(*inputs).float()  # type: ignore[no-any-return]
        return torch.cat([model(inputs[i : i + batch]) for i in range(0, len(inputs), batch)]).float()


def compare(examples: Examples, expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Compare the outputs of an exported network with those of the original network.

    Args:
        examples: The examples.
        expected: Outputs of the original network, (N, classes, ...).
        found: Outputs of the exported network, of the same shape.

    Returns:
        Number of examples, largest absolute difference of an output, and for classes the number of equal predictions
        and both accuracies in per cent, or for a regression both mean squared errors.

    Raises:
        CrbgError: a prediction differs, or for a regression an output by more than `CLOSE` times the largest output.
    """
    difference = float((expected - found).abs().max())
    common = {"data": examples.name, "examples": len(expected), "largest_difference": difference}
    if examples.metric is MSE:
        if not difference <= CLOSE * float(expected.abs().max()):
            raise CrbgError(f"outputs on {examples.name} differ from those of the ticket's network by {difference:.2g}")
        errors = (float((out - examples.labels).square().mean()) for out in (expected, found))
        return common | dict(zip(("mse", "mse_exported"), errors, strict=True))
    before, after = expected.argmax(1), found.argmax(1)
    same = before == after
    if same.ndim > 1:  # in many predictions of a sequence, some have two outputs that are equal up to rounding
        behind = expected.amax(1) - expected.gather(1, after.unsqueeze(1)).squeeze(1)
        same |= behind <= CLOSE * float(expected.abs().max())
    equal, count = int(same.sum()), same.numel()
    if equal < count:
        raise CrbgError(f"only {equal} of {count} predictions on {examples.name} equal those of the ticket's network")
    several = {"predictions": count} if same.ndim > 1 else {}  # per example
    return (
        common
        | several
        | {
            "equal_predictions": equal,
            "accuracy": 100.0 * int((before == examples.labels).sum()) / count,
            "accuracy_exported": 100.0 * int((after == examples.labels).sum()) / count,
        }
    )
