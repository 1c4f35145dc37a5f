"""What a method is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from crbg.masks.mask import Mask
    from crbg.runs.stage_cache import StageCache
    from crbg.ticket import Ticket
    from crbg.training.batches import Batches
    from crbg.training.clock import Clock
    from crbg.training.hooks import Row, SearchHook
    from crbg.training.loop import Loss, Objective


@dataclass(frozen=True)
class Traits:
    """What a comparison says of a method: where its gradient comes from, how it meets a density, what happens to the weights."""

    gradient: str
    density: str
    weights: str = "frozen"

    @property
    def differentiable(self) -> bool:
        """Whether the searched objective has this gradient, without a straight-through substitute."""
        return self.gradient.startswith("pathwise")


@dataclass(frozen=True)
class SearchTask:
    """What a method is asked for: a density (None leaves it to the method), on these batches, for so many epochs.

    `redraw(seed)` gives initial tensors of another seed; `shelf` keeps what several runs share, as a dense warm-up.
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
    shelf: StageCache | None = None

    def once(self, what: str, parts: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Make tensors that follow from the network, the data, the seed and `parts` alone, or take them from the shelf."""
        return self.shelf(what, parts, make) if self.shelf else make()

    def fit(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        search: SearchHook | None = None,
        loss: Loss | None = None,
        schedule: Callable[[float], float] | None = None,
        carried: Sequence[nn.Module] = (),
        epochs: int | None = None,
        stage: str = "",
        objective: Objective | None = None,
        batches: Batches | None = None,
    ) -> list[Row]:
        """Train what the optimiser holds on this task's batches, as `fit` does; a `stage` has a checkpoint of its own."""
        from crbg.training.loop import fit
        from crbg.training.schedules import cosine

        path = self.checkpoint.with_name(f"checkpoint.{stage}.pt") if self.checkpoint and stage else self.checkpoint
        return fit(
            model, batches or self.batches, optimiser, self.epochs if epochs is None else epochs, self.seed, loss or self.loss,
            search, schedule or cosine, carried, path, self.clock, self.precision, objective,
        )  # fmt: skip


@dataclass
class SearchResult:
    """What a search found. A strong ticket is `mask` on untouched weights; the rest says what a mask alone cannot.

    `exact` keeps precisely the number of weights asked for, where that differs from `mask`. `scores` rank the weights
    (larger = keep first), `soft` holds the noise-free real-valued gates, `changed` the tensors whose bytes the method
    changed with their role (trained, redrawn), `history` one row an epoch, `anatomy` small plain values for the record.
    A winning ticket, whose weights were trained after it was drawn, has in `start` the tensors on which it was drawn
    that differ from the initial ones. `running` are batch norm's running statistics as the search left them, which a
    run fills in where a method does not; `gain` the factors on the kept weights of a tensor with which the search came
    by them. `find_ticket` adds the digest of the `initial` tensors and, where the network has batch norm and was not
    trained under its mask, the running `statistics` of the sparse network on the data.
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
        """Write the ticket into a model: weights that the mask drops become 0, running statistics its own.

        Returns the same model.
        """
        from crbg.gates.attach import bake

        bake(model, self.mask).load_state_dict(self.statistics, strict=False)
        return model

    def ticket(self) -> Ticket:
        """Return what `find_ticket` found as a file can hold it: mask, statistics, and the digest of the initial weights.

        Those you keep: `Ticket.load(path).apply(model)` wants a model that holds them, and checks.

        Raises:
            CrbgError: weights were trained or redrawn, or this was not found by `find_ticket`.
        """
        from crbg.ticket import Ticket

        if self.changed or not self.initial:
            raise CrbgError("a ticket holds no trained or redrawn weights: apply it, then save the model's state_dict")
        return Ticket(self.mask, 0, "given", 1.0, "", (), 0, self.initial, statistics=self.statistics)
