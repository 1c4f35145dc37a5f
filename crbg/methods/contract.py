"""The contract of a method: what it receives (`SearchTask`) and what it returns (`SearchResult`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crbg.errors import CrbgError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from crbg.masks.mask import Mask
    from crbg.ticket import Ticket
    from crbg.training.batches import Batches
    from crbg.training.clock import Clock
    from crbg.training.hooks import Row, SearchHook
    from crbg.training.loop import Loss, Objective

    Stages = Callable[[str, Mapping[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Traits:
    """What a comparison of methods says of one.

    Attributes:
        gradient: Where its gradient comes from.
        density: How it meets the density asked for.
        weights: What happens to the weights.
    """

    gradient: str
    density: str
    weights: str = "frozen"

    @property
    def differentiable(self) -> bool:
        """Whether the searched objective has this gradient, without a straight-through substitute."""
        return self.gradient.startswith("pathwise")


class Method(Protocol):
    """A module of `crbg.methods`. It may also define `work(options, density, epochs)`."""

    VERSION: int
    TRAITS: Traits  # read by comparisons of methods only
    Options: Any

    def find(self, model: nn.Module, task: SearchTask, options: Any) -> SearchResult:
        """Search a ticket in the model. `crbg.search.run_search` restores the model afterwards."""


@dataclass(frozen=True)
class SearchTask:
    """The search that a method is asked to do.

    Attributes:
        batches: Minibatches by epoch.
        density: Share of weights to keep; None leaves it to the method.
        loss: Function of (outputs, labels), a mean over the batch.
        checkpoint: Path of the search's checkpoint.
        precision: `fp32` or `bf16`, see `crbg.training.loop.FitOptions`.
        redraw: Returns the initial tensors that another seed gives.
        stages: Cache of stages that several runs share, such as dense training before the search.
    """

    batches: Batches
    density: float | None
    epochs: int
    seed: int
    loss: Loss
    checkpoint: Path | None = None
    clock: Clock | None = None
    precision: str = "fp32"
    redraw: Callable[[int], Mapping[str, Tensor]] | None = None
    stages: Stages | None = None

    def cached(self, name: str, parts: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors that follow from the network, the data, the seed and `parts` alone: cached, or made now."""
        return self.stages(name, parts, make) if self.stages else make()

    def stage(self, name: str, epochs: int, batches: Batches | None = None) -> SearchTask:
        """Return the task of one stage of this search: its epochs and batches, and a checkpoint of its own."""
        path = self.checkpoint.with_name(f"checkpoint.{name}.pt") if self.checkpoint else None
        return replace(self, epochs=epochs, checkpoint=path, batches=self.batches if batches is None else batches)

    def fit(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        search: SearchHook | None = None,
        loss: Loss | None = None,
        schedule: Callable[[float], float] | None = None,
        carried: Sequence[nn.Module] = (),
        objective: Objective | None = None,
    ) -> list[Row]:
        """Train the parameters of the optimiser on this task's batches; see `crbg.training.loop.fit`."""
        from crbg.training.loop import FitOptions, fit
        from crbg.training.schedules import cosine

        options = FitOptions(
            loss=loss or self.loss, objective=objective, search=search, schedule=schedule or cosine, carried=carried,
            checkpoint=self.checkpoint, clock=self.clock, precision=self.precision,
        )  # fmt: skip
        return fit(model, self.batches, optimiser, self.epochs, self.seed, options)


@dataclass
class SearchResult:
    """What a search found. A strong ticket is `mask` on unchanged weights; the rest says what a mask alone cannot.

    Attributes:
        mask: The ticket.
        exact: The mask with exactly the number of weights asked for, where `mask` may have another number.
        scores: Ranks of the weights; the largest are kept first.
        soft: Noise-free, real-valued gates.
        changed: Tensors that the method changed, with their role (`trained` or `redrawn`).
        history: One row per epoch.
        anatomy: Small plain values for the record.
        start: For a winning ticket, whose weights were trained under the mask: the tensors at the start of that
            training that differ from the initial ones.
        running: Batch norm's running statistics as the search left them. `run_search` fills them in.
        gain: Factors on the kept weights of a tensor that the search used while it collected `running`.
        statistics: Running statistics of the sparse network on the data. `find_ticket` estimates them where the
            network has batch norm and was not trained under its mask.
        initial: Digest of the initial tensors, added by `find_ticket`.
    """

    mask: Mask
    exact: Mask | None = field(default=None, repr=False)
    scores: dict[str, Tensor] = field(default_factory=dict, repr=False)
    soft: dict[str, Tensor] = field(default_factory=dict, repr=False)
    changed: dict[str, str] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list, repr=False)
    anatomy: dict[str, Any] = field(default_factory=dict, repr=False)
    start: dict[str, Tensor] | None = field(default=None, repr=False)
    running: dict[str, Tensor] | None = field(default=None, repr=False)
    gain: dict[str, Tensor] = field(default_factory=dict, repr=False)
    statistics: dict[str, Tensor] = field(default_factory=dict, repr=False)
    initial: str = field(default="", repr=False)

    def apply(self, model: nn.Module) -> nn.Module:
        """Write the ticket into a model, in place: dropped weights become 0, running statistics those of the ticket."""
        from crbg.gates.attach import bake

        bake(model, self.mask).load_state_dict(self.statistics, strict=False)
        return model

    def ticket(self) -> Ticket:
        """Return a `Ticket` to save: mask, running statistics and the digest of the initial weights.

        Keep the initial weights yourself: `Ticket.load(path).apply(model)` needs a model that holds them, and checks
        their digest.

        Raises:
            CrbgError: weights were trained or redrawn, or this was not found by `find_ticket`.
        """
        from crbg.ticket import Ticket

        if self.changed or not self.initial:
            raise CrbgError(
                "a ticket file holds no trained or redrawn weights; call apply(model) and save the model's state_dict"
            )
        return Ticket(self.mask, 0, "given", 1.0, "", (), 0, self.initial, statistics=self.statistics)
