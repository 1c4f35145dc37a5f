"""The interface of a method: its input (`SearchTask`) and its output (`SearchResult`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crbg.errors import CrbgError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from crbg.gates.selection import Selection
    from crbg.masks.mask import Mask
    from crbg.measure.ticket_report import TicketReport
    from crbg.search.budget import Budget
    from crbg.ticket import Ticket
    from crbg.training.batches import Batches
    from crbg.training.clock import Clock
    from crbg.training.hooks import Row, SearchHook
    from crbg.training.loop import Loss, Objective

    Stages = Callable[[str, Mapping[str, Any], Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Traits:
    """Short descriptions of a method, shown in comparison tables.

    Attributes:
        gradient: Gradient estimator that the method uses, for example "pathwise, Concrete".
        density: How the method reaches the requested density.
        weights: Whether the method trains, redraws or freezes the weights.
    """

    gradient: str
    density: str
    weights: str = "frozen"

    @property
    def differentiable(self) -> bool:
        """Whether the search uses the pathwise gradient of its objective, without a straight-through estimator."""
        return self.gradient.startswith("pathwise")

    @property
    def per_layer(self) -> bool:
        """Whether the method can keep exactly the requested density in every tensor."""
        return "per layer" in self.density


UNSTATED = Traits("not stated", "not stated", "not stated")  # traits of a method that defines no `TRAITS`


class Method(Protocol):
    """The interface that each module in `crbg.methods` implements.

    A module may leave `TRAITS` out. It may also define `work(options, density, epochs)`,
    `conflicts(options, density)` and `check_outputs(options, outputs)`, which `crbg.methods.registry` describes.
    """

    VERSION: int
    TRAITS: Traits
    Options: Any

    def find(self, model: nn.Module, task: SearchTask, options: Any) -> SearchResult:
        """Search for a ticket in the model. `crbg.search.run_search` restores the model afterwards."""


@dataclass(frozen=True)
class SearchTask:
    """Input of a method: the data, the target density and the settings that are common to all methods.

    Attributes:
        batches: Provides the minibatches of each epoch.
        density: Fraction of weights to keep; if None, the method determines it.
        loss: Loss function of (outputs, labels) that returns the mean over the batch.
        checkpoint: Path of the search's checkpoint.
        precision: `fp32` or `bf16`, see `crbg.training.loop.FitOptions`.
        redraw: Returns the initial tensors for another seed.
        stages: Cache for stages that several runs have in common, such as dense training before the search.
        selection: Which weights get gates. With it, weights that are exactly zero cannot be kept. Recorded runs have
            none: all weights of the network that carry gates by default are candidates.
        validate: Returns a number that is larger for a model that is better on the validation part; None without one.
        watch: Measures the model after each epoch; its values are added to the history.
        budget: A limit on the cost of the ticket, to which `crbg` adjusts the density; `density` is then the first one.
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
    selection: Selection | None = None
    budget: Budget | None = None
    validate: Callable[[nn.Module], float] | None = None
    watch: Callable[[nn.Module], Row] | None = None

    def cached(self, name: str, parts: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the cached tensors of a stage, or compute them with `make`.

        The tensors must depend only on the network, the data, the seed and `parts`.
        """
        return self.stages(name, parts, make) if self.stages else make()

    def stage(self, name: str, epochs: int, batches: Batches | None = None) -> SearchTask:
        """Return the task for one stage of this search, with its own epochs, batches and checkpoint."""
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
        """On this task's batches, train the parameters that `optimiser` updates; see `crbg.training.loop.fit`."""
        from crbg.training.loop import FitOptions, fit
        from crbg.training.schedules import cosine

        options = FitOptions(
            loss=loss or self.loss,
            objective=objective,
            search=search,
            schedule=schedule or cosine,
            carried=carried,
            checkpoint=self.checkpoint,
            clock=self.clock,
            precision=self.precision,
            watch=self.watch,
        )
        return fit(model, self.batches, optimiser, self.epochs, self.seed, options)


@dataclass
class SearchResult:
    """Output of a method. A strong ticket is `mask` applied to the unchanged initial weights.

    Attributes:
        mask: The mask of the ticket.
        exact: Mask that keeps exactly the requested number of weights; set if `mask` may keep another number.
        scores: One score per weight; the weights with the largest scores are kept.
        soft: Noise-free, real-valued gate values.
        changed: Names of the tensors that the method changed, each with its role (`crbg.search.roles`).
        history: One row of measurements per epoch.
        anatomy: Details of the search, such as histograms of the gates, as plain JSON values for the run's record.
        start: Only for a winning ticket (a subnetwork whose weights are trained under the mask): the tensors whose
            values at the start of that training differ from the initial ones.
        running: Running statistics of batch norm at the end of the search, added by `run_search`.
        gain: For each tensor, the factor by which the search multiplied the kept weights while it collected `running`.
        statistics: Running statistics of the sparse network on the data. `find_ticket` estimates them if the network
            has batch norm and was not trained under its mask.
        searched: The weights that the search decided on, if the seed alone decides on the others.
        factors: Integer factors by which kept weights were multiplied, by name (`crbg.packing.factors`), if the method
            changed no tensor in another way. Added by `run_search`.
        initial: Digest of the initial tensors, without running statistics, added by `find_ticket`.
        tensors: Fingerprints of the tensors of the sparse network, by name, added by `find_ticket`.
        parameters: Number of parameters of the model, gated or not, added by `find_ticket`.
        report: Measurements of the ticket, added by `find_ticket`.
        variant: Name of the method's variant, added by `find_ticket`.
        weight_gain: Factor on the kept weights of each tensor that the search used; 1 if a name is missing. It belongs
            to the ticket (role `scaled`). Added by `find_ticket`.
        logit_scale: Factor by which the search multiplied the logits in its loss. For calibrated probabilities,
            multiply the logits of the sparse network by it too; its predictions do not depend on it.
        cost: The cost of the ticket and its budget as text, if the search had a budget. Added by `find_ticket`.
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
    searched: Mask | None = field(default=None, repr=False)
    factors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    initial: str = field(default="", repr=False)
    tensors: dict[str, str] = field(default_factory=dict, repr=False)
    parameters: int = field(default=0, repr=False)
    report: TicketReport | None = field(default=None, repr=False)
    variant: str = ""
    weight_gain: dict[str, float] = field(default_factory=dict, repr=False)
    logit_scale: float = 1.0
    cost: str = ""

    def __str__(self) -> str:
        """Return both densities, that of the gated weights and that of all parameters, and the report."""
        mask = self.mask
        lines = [f"{mask.kept:,} of {mask.total:,} gated weights kept: density {mask.density:.4g}"]
        if units := self.anatomy.get("units"):
            kept, total = (sum(u[key] for u in units.values()) for key in ("kept", "total"))
            lines[0] = f"{kept:,} of {total:,} units kept: density {kept / total:.4g}; {lines[0]}"
        if self.parameters:
            left = self.parameters - mask.total + mask.kept
            lines[0] += f"; {left / self.parameters:.4g} of all {self.parameters:,} parameters"
        if self.cost:
            lines.append(f"cost: {self.cost}")
        if self.variant:
            lines.append(f"variant: {self.variant}")
        if self.changed:
            roles = ", ".join(sorted({*self.changed.values()}))
            lines.append(f"the method changed {len(self.changed)} tensors: {roles}")
        return "\n".join([*lines, *([str(self.report)] if self.report else [])])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the summary, not the fields, in IPython and notebooks."""
        printer.text("..." if cycle else str(self))

    def plot(self) -> Figure:
        """Return a figure with the density of each tensor and the course of the search.

        Save it with `found.plot().savefig("ticket.png")`.
        """
        from crbg.measure.ticket_plot import plot

        return plot(self)

    def multipliers(self) -> Mapping[str, Tensor]:
        """Return the factors on the weights, by name: the mask times the gain."""
        return self.mask.multipliers(self.weight_gain)

    def apply(self, model: nn.Module) -> nn.Module:
        """Apply the ticket to a model in place.

        Pruned weights are set to 0, kept weights are multiplied by their gain, and running statistics are loaded.

        Raises:
            CrbgError: the model has other weights than the one on which the ticket was found, or does not fit the mask.
        """
        import torch

        from crbg.gates.attach import bake, detach
        from crbg.gates.layers import unwrap
        from crbg.models.initial_weights import check_fingerprints
        from crbg.training.model_state import put_tensors

        if not isinstance(model, torch.nn.Module):
            raise CrbgError(f"expected the model, not {type(model).__name__}")
        inner = detach(unwrap(model))
        if self.tensors:
            check_fingerprints(inner, self.mask, self.tensors)
        put_tensors(bake(inner, self.multipliers()), self.statistics)
        return model

    def ticket(self) -> Ticket:
        """Return a `Ticket` that can be saved: mask, gains, signs, running statistics, digest of the initial weights.

        The ticket does not contain the weights themselves, so keep the initial weights. If the search changed signs,
        the model no longer has them; copy the model before the search, or build it again from its seed.
        `Ticket.load(path).apply(model)` needs a model with the initial weights, and checks their digest.

        Raises:
            CrbgError: the method changed weights in another way than by signs and integer factors, or this result does
                not come from `find_ticket`.
        """
        from crbg.search.roles import CODED_ROLES
        from crbg.ticket import Ticket

        if not CODED_ROLES.issuperset(self.changed.values()) or not self.initial:
            raise CrbgError("a ticket stores no changed weights; call `apply(model)`, then save the model's state_dict")
        tensors = {} if self.factors else self.tensors  # fingerprints of changed weights would not be those of a ticket
        return Ticket(
            self.mask, 0, "given", 1.0, "", (), 0, self.initial, {}, self.statistics, tensors, self.weight_gain,
            self.logit_scale, self.factors,
        )  # fmt: skip
