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
    from collections.abc import Mapping

    from torch import Tensor, nn

    from crbg.gates.attach import MakeGate
    from crbg.gates.base import Gate
    from crbg.masks.mask import Mask
    from crbg.search.density_controller import Penalised

VERSION = 1
TRAITS = Traits("pathwise, clipped Gaussian", "steered to within 2 %, else cut")

LANDED = 0.02  # relative distance from the density asked for within which the mask of mu > 1/2 is the ticket
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
    """Options of the gates, the penalty and the search.

    Attributes:
        noise: Sigma of the draw; 0 is the deterministic control.
        penalty_sigma: Sigma inside the penalty.
        mu0: Mean of the initial gates, N(mu0, mu0_spread^2).
        mu0_spread: Standard deviation of the initial gates.
        penalty: induce_sparse, induce_decision, decision_quad, decision_entropy, or a sum of them such as
            0.5*induce_sparse+0.5*induce_decision.
        weight: lambda on the mean of the penalty, used when no density is asked for.
        lr: Learning rate of Adam, which falls along half a cosine.
        anneal_to: Noise after 80 % of the search, reached linearly; a negative value keeps the noise.
        source: Draws of the noise: normal, antithetic, or counter (fast on a CPU).
        learn_sigma: Whether each tensor learns its noise.
        leak: Derivative of clip outside [0, 1]; 0 is the thesis's gate, 1 straight-through (an extension).
        reach: Share of the search after which the density is to be reached.
        decide: Share of the search from which a penalty on undecided gates rises.
        firmness: Strength of this penalty at the end, relative to the gradient of the task.
        tolerance: Distance of the density from its path up to which this penalty acts; 0 stands for 0.1, and for
            0.02 below density 0.05, where the few gates lock early.
        polish: Last share of the search, in which the forward pass uses the hard mask, straight through (a variant;
            with noise 0 and firmness 0 it gave the best tickets).
        granularity: One gate per weight, per hidden unit (channel, attention head), or per hidden unit and input.
        temperature: Factor on the outputs inside the loss, which changes no prediction. Frozen weights cannot grow to
            sharpen a loss, so networks with tiny initial outputs need it. 0 gives the outputs of the first batch the
            standard deviation `spread`.
        spread: See temperature.
        pretrain: Epochs of dense training before the search. This and the options below train weights, so that the
            result is no strong ticket; its roles say so.
        joint_lr: Learning rate of the weights beside the gates; 0 freezes them.
        finetune: Epochs in which the kept weights train after the search, under the fixed mask.
        weight_lr: Learning rate of Adam in `pretrain` and `finetune`.
        train_slopes: Whether the slopes of PReLU learn beside the gates, while the weights stay frozen.
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
    """Return all epochs, those of training before and after the search included."""
    return o.pretrain + epochs + o.finetune


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Search gates on the weights, and keep those with mu > 1/2 (`half`).

    If a density was asked for and `half` is more than 2 % away from it, the top k of mu (`exact`) are kept instead.

    By default the weights are random and frozen. With `pretrain` they are trained first and frozen during the search,
    with `joint_lr` they learn beside the gates, and with `finetune` the kept ones are trained afterwards.
    """
    from crbg.gates import attach
    from crbg.gates.base import Fixed

    o = options
    slopes = _check(model, task, o)
    if o.pretrain:
        _train_weights(model, task.stage("pretrain", o.pretrain), o)
    found = _search(model, task, o, slopes)
    if o.finetune:
        with attach.gated(model, lambda name, w: Fixed(found.mask[name].to(w.device))):
            _train_weights(model, task.stage("finetune", o.finetune), o)
    trained = attach.weights(model) if o.pretrain or o.joint_lr or o.finetune else {}
    found.changed = dict.fromkeys([*trained, *slopes], "trained")
    return found


def _check(model: nn.Module, task: SearchTask, o: Options) -> dict[str, nn.Parameter]:
    """Check the options against network and task; return the slopes of PReLU that are to learn, by name."""
    import torch

    if o.granularity not in GRANULARITY:
        raise CrbgError(f"unknown granularity {o.granularity!r}: {suggest(o.granularity, GRANULARITY)}")
    if o.polish and task.density is None:
        raise CrbgError("polish holds a density while the gates are hard; ask for a density")
    if not o.train_slopes:
        return {}
    slopes = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.PReLU)}
    if not slopes:
        raise CrbgError(
            "train_slopes is on, but the network has no PReLU; for a LeNet set model_args.activation to prelu"
        )
    return slopes


def _train_weights(model: nn.Module, task: SearchTask, o: Options) -> None:
    """Train the weights densely, or those that a fixed mask on the model lets through."""
    import torch

    from crbg.gates.attach import weights

    task.fit(model, torch.optim.Adam(list(weights(model).values()), lr=o.weight_lr, fused=True))


def _search(model: nn.Module, task: SearchTask, o: Options, slopes: Mapping[str, nn.Parameter]) -> SearchResult:
    """Learn the gates, and with `joint_lr` the weights, then cut the gates to a mask."""
    import contextlib

    import torch

    from crbg.gates import attach
    from crbg.search.density_controller import BINS

    weights = contextlib.nullcontext() if o.joint_lr else attach.frozen(model)
    with weights, attach.gated(model, _gate_maker(model, task, o)):
        for slope in slopes.values():
            slope.requires_grad_(True)
        hook = _hook(model, task, o)
        temperature = o.temperature or o.spread / _spread(model, task)
        groups = [{"params": [*(p for g in hook.gates for p in g.parameters()), *slopes.values()], "lr": o.lr}]
        if o.joint_lr:
            groups.append({"params": list(attach.weights(model).values()), "lr": o.joint_lr})
        adam = torch.optim.Adam(groups, fused=True)
        histograms = {"start": hook.picture()}
        with attach.sampling(model):
            history = task.fit(model, adam, hook, lambda out, y: task.loss(out * temperature, y))
        histograms |= {"middle": hook.middle, "end": hook.picture()}
        scores = {n: g.scores().cpu() for n, g in hook.by_name.items()}
        soft = {n: g.soft().cpu() for n, g in hook.by_name.items()}
    mask, exact = _cut(scores, task.density, hook.total)
    found = _on_weights(model, o, {"mask": mask, "exact": exact, "scores": scores, "soft": soft})
    found.history = history
    found.anatomy = {"mu": histograms, "bins": list(BINS)}
    if o.granularity != "weight":
        found.anatomy["units"] = mask.counts()
    return found


def _gate_maker(model: nn.Module, task: SearchTask, o: Options) -> MakeGate:
    """Return the function that makes the gate of a weight, or None for a weight that stays dense.

    mu starts at mu0 + mu0_spread * N(0, 1), drawn from the seed and the name of the weight.
    """
    import torch

    from crbg import rng
    from crbg.gates import attach
    from crbg.gates.gaussian import Gaussian, Units

    first = next(iter(attach.weights(model)), "")
    # The outputs of an attention head enter the next product as neighbouring columns, which share a gate.
    heads = {
        f"{name}.proj.weight": m.num_heads
        for name, m in model.named_modules()
        if hasattr(m, "num_heads") and hasattr(m, "proj")
    }

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

    return make


def _hook(model: nn.Module, task: SearchTask, o: Options) -> Penalised:
    """Return the penalty on the gates: with a fixed lambda, or with lambda steered to the density asked for."""
    from crbg.search.density_controller import Controlled, Penalised, Plan

    anneal = None if o.anneal_to < 0 else o.anneal_to
    if task.density is None:
        return Penalised(model, o.penalty, o.weight, anneal)
    tolerance = o.tolerance or (0.1 if task.density >= 0.05 else 0.02)
    plan = Plan(reach=o.reach, decide=o.decide, firmness=o.firmness, tolerance=tolerance, polish=o.polish)
    return Controlled(model, o.penalty, task.density, plan, anneal)


def _cut(scores: Mapping[str, Tensor], density: float | None, total: int) -> tuple[Mask, Mask]:
    """Return the ticket and the exact mask, of the k gates with the largest mu."""
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, select

    half = Mask({n: s > 0.5 for n, s in scores.items()})
    k = half.kept if density is None else keep_count(density, total)
    exact = select(scores, k)
    return half if abs(half.kept - k) <= LANDED * k else exact, exact


def _on_weights(model: nn.Module, o: Options, gates: Mapping[str, Mapping[str, Tensor]]) -> SearchResult:
    """Widen values of gates (mask, exact, scores, soft) to values of weights: a gate on a unit covers its columns."""
    from crbg.gates.attach import weights
    from crbg.gates.base import columns
    from crbg.masks.mask import Mask

    def widen(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if o.granularity == "weight":
            return dict(values)
        return {n: columns(v, raw[n]).expand(raw[n].shape).contiguous() for n, v in values.items()}

    raw = weights(model)
    mask, exact, scores, soft = (widen(gates[kind]) for kind in ("mask", "exact", "scores", "soft"))
    return SearchResult(Mask(mask), Mask(exact), scores, soft)


def _spread(model: nn.Module, task: SearchTask) -> float:
    """Return the standard deviation of the centred outputs over the first batch.

    Gates are noise-free and dropout is off. Batch norm uses the statistics that it uses in the search, and keeps its
    running ones. The random state is restored; a loader that shuffles is seeded with the task's seed.
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
