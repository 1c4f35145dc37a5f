"""CRBG: continuously relaxed Bernoulli gates on frozen weights (Tsayag & Lindenbaum, arXiv 2603.08914).

Every weight has a gate z = clip(mu + eps, 0, 1); only mu learns, by Adam, under lambda times the mean penalty. With a
target density lambda is steered to it (`crbg.search.density_controller.Controlled`); without one lambda stays as given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError, suggest
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.base import Gate

VERSION = 1
TRAITS = Traits("pathwise, clipped Gaussian", "steered to within 2 %, else cut")

LANDED = 0.02  # relative distance from the asked density within which the natural mask counts as having it
GRANULARITY = ("weight", "unit", "unit+input")
SOURCES = ("normal", "antithetic", "counter")  # of `crbg.gates.gaussian`, which needs torch
PENALTIES = ("induce_sparse", "induce_decision", "decision_quad", "decision_entropy")  # of `crbg.search.penalties`


def _wrong_penalty(name: str) -> str | None:
    for term in name.split("+"):
        factor, star, what = term.strip().rpartition("*")
        try:
            finite = not star or math.isfinite(float(factor))
        except ValueError:
            finite = False
        if not finite:
            return "is not of the form 'a*name+b*name'"
        if what.strip() not in PENALTIES:
            return f"has the unknown penalty {what.strip()!r}: {suggest(what.strip(), PENALTIES)}"
    return None


@dataclass(frozen=True)
class Options:
    """noise: sigma of the draw; 0 is the deterministic control. penalty_sigma: sigma inside the penalty.

    mu0, mu0_spread: initial gates are N(mu0, mu0_spread^2). weight: lambda on the mean scale, used when no density is
    asked for. lr: Adam's rate, falling along half a cosine. penalty: induce_sparse, induce_decision, decision_quad,
    decision_entropy, or a sum of them, as 0.5*induce_sparse+0.5*induce_decision. source: normal, antithetic or counter
    (fast on a processor) draws.
    learn_sigma: each tensor learns its noise.
    anneal_to: noise at 80 % of the search, reached linearly; negative means no annealing. The controller's plan: reach,
        the share of the search after which the density is to be there; decide, that from which a penalty on undecided
        gates rises; firmness, how strong that becomes against the task; tolerance, how far off its path the density may
        be for that; 0 means 0.1, and 0.02 below density 0.05, where the few gates lock early. polish: the last share of
        the search, in which the forward pass uses the hard mask, straight through (our variant; with noise 0 and
        firmness 0 it gave the best tickets).
    leak: derivative of clip outside [0, 1] (0 is the thesis's gate, 1 straight-through): our extension, a named
        variant.
    granularity: one gate per weight, per hidden unit (channel, attention head), or per hidden unit and input.
        temperature: factor on the outputs inside the loss, which changes no prediction; frozen weights cannot grow to
        make a loss sharp, so a network whose initial outputs are tiny needs it. 0 chooses it: outputs get the standard
        deviation `spread` on the first batch.

    What follows trains weights, so what comes out is no strong ticket, and says so in its roles. pretrain: epochs of
    dense training before the search, whose gates then stand on the trained, frozen weights. joint_lr: learning rate of
    the weights beside the gates. finetune: epochs in which the kept weights train after the search, from where they
    are, under the fixed mask. weight_lr: Adam's rate in both. train_slopes: the slopes of PReLU learn beside the gates;
    the weights stay frozen.
    """

    noise: float = option(0.5, least=0)
    penalty_sigma: float = option(0.5, above=0)
    mu0: float = 0.5
    mu0_spread: float = option(0.01, least=0)
    penalty: str = option("induce_sparse", check=_wrong_penalty)
    weight: float = option(1.0, least=0)
    lr: float = option(0.03, least=0)
    anneal_to: float = -1.0
    source: str = option("normal", choices=SOURCES)
    learn_sigma: bool = False
    leak: float = share(0.0)
    reach: float = share(0.4)
    decide: float = share(0.5)
    firmness: float = option(1.0, least=0)
    tolerance: float = option(0.0, least=0)
    polish: float = share(0.0)
    granularity: str = option("weight", choices=GRANULARITY)
    temperature: float = option(1.0, least=0)
    spread: float = option(1.0, above=0)
    pretrain: int = option(0, least=0)
    joint_lr: float = option(0.0, least=0)
    finetune: int = option(0, least=0)
    weight_lr: float = option(1e-3, least=0)
    train_slopes: bool = False


def conflicts(o: Options, density: float | None) -> Iterator[str]:
    """Yield options that do not go together, or not with the density."""
    if o.polish and density is None:
        yield "crbg.polish keeps a density while the gates are hard: set density"
    if o.polish and o.granularity != "weight":
        yield "crbg.polish needs gates on weights: set options.granularity to weight"


def work(o: Options, density: float | None, epochs: int) -> float:
    """Count epochs in all: training before and after the search are epochs too."""
    return o.pretrain + epochs + o.finetune


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search, and keep the gates with mu > 1/2 (`half`).

    Where a density was asked for and `half` lies more than 2 % from it, the top k of mu (`exact`) are kept instead.
    """
    import contextlib

    import torch

    from crbg import rng
    from crbg.gates import attach
    from crbg.gates.base import Fixed, columns
    from crbg.gates.gaussian import Gaussian, Units
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, select
    from crbg.search import density_controller

    o = options
    if o.granularity not in GRANULARITY:
        raise CrbgError(f"unknown granularity {o.granularity!r}: {suggest(o.granularity, GRANULARITY)}")
    raw = attach.weights(model)
    first = next(iter(raw), "")
    # What leaves an attention head enters the next product as neighbouring columns, which share a gate.
    heads = {
        f"{n}.proj.weight": m.num_heads
        for n, m in model.named_modules()
        if hasattr(m, "num_heads") and hasattr(m, "proj")
    }
    slopes = (
        {f"{p}.weight": m.weight for p, m in model.named_modules() if isinstance(m, torch.nn.PReLU)}
        if o.train_slopes
        else {}
    )
    if o.train_slopes and not slopes:
        raise CrbgError(
            "train_slopes is on, but the network has no PReLU; for a LeNet set model_args.activation to prelu"
        )
    if o.polish and task.density is None:
        raise CrbgError("polish holds a density while the gates are hard; ask for a density")
    trains = bool(o.pretrain or o.joint_lr or o.finetune)
    changed = dict.fromkeys([*(raw if trains else ()), *slopes], "trained")

    def train(name: str, epochs: int) -> None:
        """Train the weights densely, or those that a fixed mask on the model lets through."""
        adam = torch.optim.Adam(list(attach.weights(model).values()), lr=o.weight_lr, fused=True)
        task.fit(model, adam, epochs=epochs, stage=name)

    if o.pretrain:
        train("pretrain", o.pretrain)

    def make(name: str, w: Tensor) -> Gate | None:
        if o.granularity == "unit" and name == first:
            return None
        shape = w.shape if o.granularity == "weight" else torch.Size([heads.get(name, w.shape[1])])
        jitter = torch.from_numpy(rng.normal(shape.numel(), task.seed, "mu", name)).reshape(shape)
        mu = (o.mu0 + o.mu0_spread * jitter).to(torch.float32).to(w.device)
        kind = Gaussian if o.granularity == "weight" else Units
        return kind(
            mu, noise=o.noise, penalty_sigma=o.penalty_sigma, source=o.source, learn_sigma=o.learn_sigma, leak=o.leak
        )

    with attach.frozen(model) if not o.joint_lr else contextlib.nullcontext(), attach.gated(model, make):
        for slope in slopes.values():
            slope.requires_grad_(True)
        anneal = None if o.anneal_to < 0 else o.anneal_to
        search: density_controller.Penalised
        if task.density is None:
            search = density_controller.Penalised(model, o.penalty, o.weight, anneal)
        else:
            tolerance = o.tolerance or (0.1 if task.density >= 0.05 else 0.02)
            plan = density_controller.Plan(
                reach=o.reach, decide=o.decide, firmness=o.firmness, tolerance=tolerance, polish=o.polish
            )
            search = density_controller.Controlled(model, o.penalty, task.density, plan, anneal)
        sharpness = o.temperature or o.spread / _spread(model, task)
        learnt = [p for g in search.gates for p in g.parameters()]
        groups = [{"params": [*learnt, *slopes.values()], "lr": o.lr}]
        if o.joint_lr:
            groups.append({"params": list(attach.weights(model).values()), "lr": o.joint_lr})
        adam = torch.optim.Adam(groups, fused=True)
        start = search.picture()
        with attach.sampling(model):
            history = task.fit(model, adam, search, lambda out, y: task.loss(out * sharpness, y))
        scores = {n: g.scores().cpu() for n, g in search.by_name.items()}
        half = Mask({n: s > 0.5 for n, s in scores.items()})
        k = half.kept if task.density is None else keep_count(task.density, search.total)
        exact = select(scores, k)
        small = half if abs(half.kept - k) <= LANDED * k else exact
        soft = {n: g.soft() for n, g in search.by_name.items()}
        course = {"start": start, "middle": search.middle, "end": search.picture()}

    def widen(values: dict[str, Tensor] | Mask) -> dict[str, Tensor]:
        if o.granularity == "weight":
            return dict(values)
        return {n: columns(v.cpu(), raw[n]).expand(raw[n].shape).contiguous() for n, v in values.items()}

    soft = {n: z.cpu() for n, z in widen(soft).items()}
    found = SearchResult(Mask(widen(small)), Mask(widen(exact)), widen(scores), soft, changed, history)
    found.anatomy = {"mu": course, "bins": list(density_controller.BINS)}
    if o.granularity != "weight":
        found.anatomy["units"] = small.counts()
    if o.finetune:
        with attach.gated(model, lambda name, w: Fixed(found.mask[name].to(w.device))):
            train("finetune", o.finetune)
    return found


def _spread(model: nn.Module, task: SearchTask) -> float:
    """Standard deviation of the outputs over the first batch, each output centred, with noise-free gates and without dropout.

    Batch norm takes the statistics that it takes in the search, and keeps its running ones. Draws nothing that outlives
    it: a loader that shuffles does so here from the task's seed.
    """
    import torch

    from crbg.measure.accuracy import keeping_modes

    buffers = {n: b.clone() for n, b in model.named_buffers()}
    device = next(model.parameters()).device
    with (
        keeping_modes(model) as was,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
    ):
        for m, training in was.items():
            m.training = training and isinstance(m, torch.nn.modules.batchnorm._NormBase)
        torch.manual_seed(task.seed)
        out = torch.func.functional_call(model, buffers, (next(iter(task.batches.epoch(0)))[0],))
    spread = float((out - out.mean(0)).std()) if out.numel() > 1 else 0.0
    return spread if spread > 0 else 1.0
