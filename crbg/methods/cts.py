"""Concrete Ticket Search (Arora & Teuscher 2025): gates searched on weights as they are, the top k kept, then trained.

The gates' objective is one of seven (`crbg.search.objectives`); GradBalance, or a multiplier, holds their budget.
Search and training are
independent: `train: false, rewind: 0` gives a strong ticket. Batches of the search are not augmented and batch norm
    takes each batch's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crbg.errors import CrbgError, suggest
from crbg.methods._ranked import asked, balanced
from crbg.methods._winning import Recipe, plain, winning
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor, nn

    from crbg.gates.base import Gate
    from crbg.training.hooks import SearchHook

VERSION = 1
# Of `crbg.search.objectives`, which needs torch.
OBJECTIVES = ("loss", "deltaloss", "kl", "forward_kl", "feature", "grad", "gradnorm")
SECOND_ORDER = ("grad", "gradnorm")
TRAITS = Traits("pathwise, Concrete", "exact of all together (cut at the end)", "trained afterwards")
NEEDS_DENSITY = True


@dataclass(frozen=True)
class Options(Recipe):
    """objective: loss, deltaloss, kl (reverse), forward_kl, feature, grad, gradnorm. search: its epochs. search_lr: Adam's.

    decay_at: share of the search after which the rate falls to a tenth. gate: concrete (of temperature `tau`), or
        clipped (CRBG's Gaussian gate, of standard deviation `noise`). budget: what is counted of a Concrete gate, its
        value without noise (`plain`, as the authors' code) or the probability that it is above 1/2 (`bernoulli`).
        begin: openness at the start, 0 for the density. controller: gradbalance (slack: the budget is that many times
        the target; memory: of its moving average) or lagrange (multiplier_lr: rate of its ascent).
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
    """Count epochs in all.

    A step of the search with a dense reference costs a third more, one with second derivatives twice as much.
    """
    return o.epochs(epochs, o.search)


def conflicts(o: Options, density: float | None) -> Iterator[str]:
    """Yield options that do not go together."""
    if o.gate == "clipped" and o.objective in SECOND_ORDER:
        yield f"cts.objective {o.objective} needs second derivatives, which clipped gates do not have: use gate concrete"
    if o.gate == "clipped" and o.budget != "plain":
        yield "cts.budget is for Concrete gates; clipped gates always count P(z > 1/2)"


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search the gates at the rewinding point, keep the top k, train them."""
    import torch

    from crbg.gates.concrete import Bernoulli, Clipped, Concrete
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, select
    from crbg.search import objectives
    from crbg.search.gradbalance import GradBalance, Lagrange
    from crbg.training import distributed

    o, density = options, asked(task, "cts")
    for what, value, known in (
        ("gate", o.gate, ("concrete", "clipped")), ("budget", o.budget, ("plain", "bernoulli")),
        ("controller", o.controller, ("gradbalance", "lagrange")), ("objective", o.objective, objectives.NAMES),
    ):  # fmt: skip
        if value not in known:
            raise CrbgError(f"unknown {what} {value!r}: {suggest(value, known)}")
    if o.gate == "clipped" and o.objective in objectives.SECOND_ORDER:
        raise CrbgError(
            f"objective {o.objective} needs second derivatives, which clipped gates do not give: use gate concrete"
        )
    if distributed.size() > 1 and o.objective in objectives.WHOLE_BATCH:
        raise CrbgError(
            f"objective {o.objective} is no mean over examples, so several processes cannot share its batches: use one GPU"
        )
    if o.search < 1:
        raise CrbgError(f"search {o.search} must be at least one epoch")
    if o.tau <= 0:
        raise CrbgError(f"tau {o.tau} must be above 0")
    if o.gate == "clipped" and o.budget != "plain":
        raise CrbgError("budget is for Concrete gates; clipped ones always count P(z > 1/2)")
    factor, of_model = objectives.FACTORS[o.objective], objectives.objective(o.objective, task.loss)
    p = o.begin or density

    def make(name: str, w: Tensor) -> Gate:
        if o.gate == "clipped":
            return Clipped.at(p, w, o.noise)
        kind = Concrete if o.budget == "plain" else Bernoulli
        return kind(torch.full_like(w, kind.start(p, o.tau)), o.tau)

    def objective(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return factor * of_model(m, x, y)

    def control(gates: list[Any], keep: int) -> SearchHook:
        if o.controller == "lagrange":
            return Lagrange(gates, keep, o.slack, o.multiplier_lr)
        return GradBalance(gates, keep, o.slack, o.memory)

    def draw(batch: list[tuple[Tensor, Tensor]]) -> SearchResult:
        def search() -> dict[str, Tensor]:
            path = task.checkpoint.with_name("checkpoint.search.pt") if task.checkpoint else None
            inner = replace(task, batches=plain(task), epochs=o.search, checkpoint=path)
            found = balanced(model, inner, density, make, o.search_lr, o.decay_at, o.slack, control, objective)
            course = {k: torch.tensor([row[k] for row in found.history], dtype=torch.float64) for k in found.history[0]}
            kinds = {"scores": found.scores, "soft": found.soft, "course": course}
            return {f"{kind}.{n}": t for kind, tensors in kinds.items() for n, t in tensors.items()}

        made = task.once("search", {**o.parts(), "density": density, "cts": VERSION}, search)
        scores, soft, course = (
            {n.removeprefix(k): t for n, t in made.items() if n.startswith(k)} for k in ("scores.", "soft.", "course.")
        )
        mask = select(scores, keep_count(density, Mask.full(scores).total))
        rows = [
            dict(zip(course, values, strict=True))
            for values in zip(*(t.tolist() for t in course.values()), strict=True)
        ]
        return SearchResult(mask, scores=scores, soft=soft, history=rows)

    return winning(model, task, o, draw)
