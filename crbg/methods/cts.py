"""Concrete Ticket Search (Arora & Teuscher 2025): train gates on frozen weights, then train the top k weights.

The gates minimise one of seven objectives (`crbg.search.objectives`); GradBalance or a Lagrange multiplier enforces the
density budget. The options `train: false, rewind: 0` skip all weight training and give a strong ticket. During the
search, batches are not augmented and batch norm uses the statistics of each batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError
from crbg.methods._scored import BudgetedSearch, required_density, search_with_budget
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share
from crbg.search.winning import Recipe, plain, winning

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor, nn

    from crbg.gates.base import Gate
    from crbg.training.hooks import SearchHook

VERSION = 1
# Copied from `crbg.search.objectives`, which imports torch.
OBJECTIVES = ("loss", "deltaloss", "kl", "forward_kl", "feature", "grad", "gradnorm")
SECOND_ORDER = ("grad", "gradnorm")
TRAITS = Traits("pathwise, Concrete", "exact, global (final top-k)", "trained after the search")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options(Recipe):
    """Options of the search, in addition to the training options.

    Attributes:
        objective: `loss`, `deltaloss`, `kl` (reverse), `forward_kl`, `feature`, `grad` or `gradnorm`.
        search: Epochs of the search.
        search_lr: Learning rate of Adam in the search.
        decay_at: Fraction of the search after which `search_lr` is divided by 10.
        gate: `concrete`, or `clipped` (CRBG's Gaussian gate).
        tau: Temperature of Concrete gates.
        noise: Standard deviation of the noise of clipped gates.
        budget: What each Concrete gate contributes to the budget: its noise-free value (`plain`, as in the authors'
            code), or the probability that it is above 1/2 (`bernoulli`).
        begin: Initial contribution of each gate to the budget; 0 selects the target density.
        controller: `gradbalance` or `lagrange`.
        slack: The budget, as a multiple of the number of weights to keep.
        memory: Decay rate of GradBalance's moving average.
        multiplier_lr: Learning rate of the Lagrange multiplier.
    """

    objective: str = option("kl", choices=OBJECTIVES)
    search: int = option(160, least=1)
    search_lr: float = option(0.1, least=0)
    decay_at: float = share(0.88)
    gate: str = option("concrete", choices=("concrete", "clipped"))
    tau: float = option(2 / 3, above=0)
    noise: float = option(0.5, least=0)
    budget: str = option("plain", choices=("plain", "bernoulli"))
    begin: float = share(0.0)
    controller: str = option("gradbalance", choices=("gradbalance", "lagrange"))
    slack: float = option(1.1, above=0)
    memory: float = option(0.99, least=0, below=1)
    multiplier_lr: float = option(1e-3, least=0)


def work(o: Options, density: float | None, epochs: int) -> float:
    """Return the total number of epochs, including those of the search.

    A search step counts as one training step, although it costs a third more if the objective needs a dense reference
    network, and twice as much if it needs second derivatives.
    """
    return o.epochs(epochs, o.search)


def conflicts(o: Options, density: float | None) -> Iterator[str]:
    """Yield one message for each combination of options that is not allowed."""
    if o.gate == "clipped" and o.objective in SECOND_ORDER:
        yield f"cts.objective {o.objective} needs second derivatives, which clipped gates lack: use `gate: concrete`"
    if o.gate == "clipped" and o.budget != "plain":
        yield "cts.budget is for Concrete gates only; clipped gates always count with P(z > 1/2)"


def check_outputs(o: Options, outputs: Any) -> None:
    """Raise an error if the objective compares probabilities and there are fewer than two classes."""
    from crbg.search import objectives

    if o.objective in objectives.SOFTMAX:
        objectives.check_outputs(outputs)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train gates on the weights at the rewinding point, keep the top k weights, and train these."""
    from crbg.masks.select import select, total_count

    o, density = options, required_density(task, "cts")
    _check(o)

    def draw(batch: list[tuple[Tensor, Tensor]]) -> SearchResult:
        key = {**o.parts(), "density": density, "cts": VERSION}
        made = task.cached("search", key, lambda: _search(model, task, o, density))
        scores, soft, history = (
            {n.removeprefix(k): t for n, t in made.items() if n.startswith(k)} for k in ("scores.", "soft.", "course.")
        )
        mask = select(scores, total_count(scores, density))
        columns = zip(*(t.tolist() for t in history.values()), strict=True)
        rows = [dict(zip(history, values, strict=True)) for values in columns]
        return SearchResult(mask, scores=scores, soft=soft, history=rows)

    return winning(model, task, o, draw)


def _search(model: nn.Module, task: SearchTask, o: Options, density: float) -> dict[str, Tensor]:
    """Train the gates; return scores, noise-free gate values and history as named tensors for the stage cache."""
    import torch

    from crbg.gates.concrete import Bernoulli, Clipped, Concrete
    from crbg.search import objectives
    from crbg.search.gradbalance import GradBalance, Lagrange

    factor, of_model = objectives.FACTORS[o.objective], objectives.objective(o.objective, task.loss)
    openness = o.begin or density

    def make(name: str, w: Tensor) -> Gate:
        if o.gate == "clipped":
            return Clipped.at(openness, w, o.noise)
        kind = Concrete if o.budget == "plain" else Bernoulli
        return kind(torch.full_like(w, kind.start(openness, o.tau)), o.tau)

    def objective(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return factor * of_model(m, x, y)

    def control(gates: list[Any], keep: int) -> SearchHook:
        if o.controller == "lagrange":
            return Lagrange(gates, keep, o.slack, o.multiplier_lr)
        return GradBalance(gates, keep, o.slack, o.memory)

    stage = task.stage("search", o.search, plain(task))
    settings = BudgetedSearch(density, o.search_lr, o.decay_at, o.slack)
    found = search_with_budget(model, stage, make, settings, control, objective)
    history = {k: torch.tensor([row[k] for row in found.history], dtype=torch.float64) for k in found.history[0]}
    kinds = {"scores": found.scores, "soft": found.soft, "course": history}  # the keys are part of the stored format
    return {f"{kind}.{n}": t for kind, tensors in kinds.items() for n, t in tensors.items()}


def _check(o: Options) -> None:
    from crbg.search import objectives
    from crbg.training import distributed

    if distributed.size() > 1 and o.objective in objectives.WHOLE_BATCH:
        raise CrbgError(
            f"objective {o.objective} is not a mean over examples, so a batch cannot be split over several processes: "
            "use one process (one GPU)"
        )
