"""CRBG: continuously relaxed Bernoulli gates on frozen weights (Tsayag & Lindenbaum, arXiv 2603.08914).

Every weight has a gate z = clip(mu + eps, 0, 1); only mu learns, by Adam, under lambda times the mean penalty. With a target
density lambda is steered to it (`crbg.control.Controlled`); without one lambda stays as given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crbg.errors import CrbgError, choose
from crbg.methods import Found, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gate import Gate

VERSION = 1

LANDED = 0.02  # relative distance from the asked density within which the natural mask counts as having it
GRANULARITY = ("weight", "unit", "unit+input")


@dataclass(frozen=True)
class Options:
    """noise: sigma of the draw; 0 is the deterministic control. penalty_sigma: sigma inside the penalty.

    mu0, mu0_spread: initial gates are N(mu0, mu0_spread^2). weight: lambda on the mean scale, used when no density is asked
    for. anneal_to: noise at 80 % of the search, reached linearly; negative means no annealing. firmness, decide, reach,
    tolerance: the controller's plan; tolerance 0 means 0.1, and 0.02 below density 0.05, where the few gates lock early.
    granularity: one gate per weight, per hidden unit, or per hidden unit and input. temperature: factor on the outputs inside
    the loss, which changes no prediction; frozen weights cannot grow to make a loss sharp, so a network whose initial outputs
    are tiny needs it. 0 chooses it: outputs get unit standard deviation on the first batch.
    """

    noise: float = 0.5
    penalty_sigma: float = 0.5
    mu0: float = 0.5
    mu0_spread: float = 0.01
    penalty: str = "induce_sparse"
    weight: float = 1.0
    lr: float = 0.03
    anneal_to: float = -1.0
    source: str = "normal"
    learn_sigma: bool = False
    reach: float = 0.4
    decide: float = 0.5
    firmness: float = 1.0
    tolerance: float = 0.0
    granularity: str = "weight"
    temperature: float = 1.0


def find(model: nn.Module, task: Task, options: Options) -> Found:
    """Search, and keep the gates with mu > 1/2 (`half`).

    Where a density was asked for and `half` lies more than 2 % from it, the top k of mu (`exact`) are kept instead.
    """
    import torch

    from crbg import attach, control, gate, rng
    from crbg.fit import fit
    from crbg.mask import Mask
    from crbg.measure import readings
    from crbg.select import keep_count, select

    o = options
    if o.granularity not in GRANULARITY:
        raise CrbgError(f"unknown granularity {o.granularity!r}: {choose(o.granularity, GRANULARITY)}")
    raw = attach.weights(model)
    first = next(iter(raw), "")

    def make(name: str, w: Tensor) -> Gate | None:
        if o.granularity == "unit" and name == first:
            return None
        shape = w.shape if o.granularity == "weight" else w.shape[1:2]
        jitter = torch.from_numpy(rng.normal(shape.numel(), task.seed, "mu", name)).reshape(shape)
        mu = (o.mu0 + o.mu0_spread * jitter).to(torch.float32).to(w.device)
        kind = gate.Gaussian if o.granularity == "weight" else gate.Units
        return kind(mu, noise=o.noise, penalty_sigma=o.penalty_sigma, source=o.source, learn_sigma=o.learn_sigma)

    with attach.frozen(model), attach.gated(model, make):
        anneal = None if o.anneal_to < 0 else o.anneal_to
        search: control.Penalised
        if task.density is None:
            search = control.Penalised(model, o.penalty, o.weight, anneal)
        else:
            tolerance = o.tolerance or (0.1 if task.density >= 0.05 else 0.02)
            plan = control.Plan(reach=o.reach, decide=o.decide, firmness=o.firmness, tolerance=tolerance)
            search = control.Controlled(model, o.penalty, task.density, plan, anneal)
        sharpness = o.temperature or 1.0 / _spread(model, task)
        learnt = [p for g in search.gates for p in g.parameters()]
        adam = torch.optim.Adam(learnt, lr=o.lr, fused=True)
        with attach.sampling(model):
            history = fit(
                model, task.batches, adam, task.epochs, task.seed, lambda out, y: task.loss(out * sharpness, y), search,
                checkpoint=task.checkpoint, clock=task.clock,
            )  # fmt: skip
        scores = {n: g.scores().cpu() for n, g in search.by_name.items()}
        half = Mask({n: s > 0.5 for n, s in scores.items()})
        k = half.kept if task.density is None else keep_count(task.density, search.total)
        exact = select(scores, k)
        small = half if abs(half.kept - k) <= LANDED * k else exact
        soft = readings(model)["mean"]

    def widen(values: dict[str, Tensor] | Mask) -> dict[str, Tensor]:
        if o.granularity == "weight":
            return dict(values)
        return {n: gate.columns(v.cpu(), raw[n]).expand(raw[n].shape).contiguous() for n, v in values.items()}

    soft = {n: z.cpu() for n, z in widen(soft).items()}
    return Found(Mask(widen(small)), Mask(widen(exact)), widen(scores), soft, history=history)


def _spread(model: nn.Module, task: Task) -> float:
    """Standard deviation of the outputs over the first batch, each output centred, with noise-free gates in eval mode.

    Draws nothing that outlives it: a loader that shuffles does so here from the task's seed.
    """
    import torch

    was = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(task.seed)
        out = model.eval()(next(iter(task.batches.epoch(0)))[0])
    model.train(was)
    spread = float((out - out.mean(0)).std()) if out.numel() > 1 else 0.0
    return spread if spread > 0 else 1.0
