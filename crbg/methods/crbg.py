"""CRBG: continuously relaxed Bernoulli gates on frozen weights (Tsayag & Lindenbaum, arXiv 2603.08914).

Every weight has a gate z = clip(mu + eps, 0, 1) with Gaussian noise eps. Adam trains only mu, on the task's loss plus
lambda times the mean penalty. If a target density is given, `crbg.search.density_controller.Controlled` adjusts lambda
to reach it; otherwise, lambda is constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option, share
from crbg.search.penalty_names import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from crbg.masks.mask import Mask
    from crbg.search.density_controller import Penalised
    from crbg.training.hooks import SearchHook

    LayerCounts = Callable[[Mapping[str, Tensor], float], Mapping[str, int]]

VERSION = 1
TRAITS = Traits("pathwise, clipped Gaussian", "controlled to within 2 %, else exact top-k")

LANDED = 0.02  # the mask mu > 1/2 is the ticket if its density is within this relative distance of the target
GRANULARITY = ("weight", "unit", "unit+input", "stream")
STEERING = ("penalty", "shift", "shift_layers", "shift_erk")
FINETUNED = ("found", "shuffled")
SCHEDULES = ("cosine", "plateau")
SOURCES = ("normal", "antithetic", "counter")  # copied from `crbg.gates.gaussian`, which imports torch


def _wrong_penalty(text: str) -> str | None:
    try:
        parse(text)
    except CrbgError as error:
        return f"cannot be used: {error}"
    return None


@dataclass(frozen=True)
class Options:
    """Options of the gates, the penalty and the search.

    Attributes:
        noise: Standard deviation of the noise eps; 0 gives the deterministic control.
        penalty_sigma: Sigma in the penalty, which may differ from `noise`.
        mu0: Mean of the initial mu ~ N(mu0, mu0_spread^2).
        mu0_spread: Standard deviation of the initial mu.
        penalty: `induce_sparse`, `induce_decision`, `decision_quad`, `decision_entropy`, or a weighted sum such as
            `0.5*induce_sparse+0.5*induce_decision`.
        weight: lambda, the factor on the mean penalty; used only if no density is requested.
        product: Add one gate for each input of a layer, whose values multiply those of its weights' gates (product
            gates, an extension), with this factor on their penalty (`crbg.search.product_penalty`); 0 for none.
        adapt: The penalty of a gate is multiplied by |w|^adapt, divided by its mean over the tensor: with a negative
            value, gates of small weights are penalised more (an extension); 0 for the same lambda for all.
        lr: Initial learning rate of Adam.
        shared_lr: Initial learning rate of the steps that all gates of a row or of a column of a weight tensor share
            (additive hierarchical gates, an extension: `crbg.search.shared_steps`); 0 for none.
        schedule: How the learning rate falls to 0: `cosine`, or `plateau`, which is constant in the first 60 % of the
            search and linear afterwards.
        beta1: Decay rate of Adam's running mean of the gradient (its momentum).
        beta2: Decay rate of Adam's running mean of the squared gradient.
        anneal_to: The noise changes linearly to this value over the first 80 % of the search; a negative value keeps
            it constant.
        source: How the noise is generated: `normal`, `antithetic`, or `counter` (counter-based, fast on a CPU).
        learn_sigma: Whether the standard deviation of the noise is learned, one value per tensor.
        leak: Derivative of clip used outside [0, 1]: 0 as in the thesis, 1 for a straight-through gate (an extension).
        reach: Fraction of the search after which the target density should be reached.
        decide: Fraction of the search after which a penalty on undecided gates (0 < mu < 1) starts and then grows.
        firmness: Final strength of the penalty on undecided gates, relative to the gradient of the task's loss.
        tolerance: The penalty on undecided gates acts only while |log(density / planned density)| is at most this
            value. 0 selects 0.1, or 0.02 for target densities below 0.05, where the few open gates would otherwise be
            fixed too early.
        polish: Length of the final phase, as a fraction of the search, in which the forward pass uses the hard mask
            1[mu > 1/2] with straight-through gradients. This is a variant of the method; it gave the best tickets with
            `noise` 0 and `firmness` 0.
        steer: How a target density is reached. `penalty`: feedback on lambda, the factor on the penalty. `shift`: no
            penalty; after each step, one number is added to all mu, so that the density is the planned one, up to ties
            and rounding. `shift_layers`: the same for each layer or stream alone, so that all have the same density.
            `shift_erk`: the same with a density for each layer that is proportional to the sum of its dimensions over
            their product (Erdős-Rényi kernel), so that small layers keep more.
        granularity: `weight` for one gate per weight; `unit` for one per input unit of each layer (channel, attention
            head), without the inputs of the network; `unit+input` with them; `stream` for one per unit that can be cut
            out of the network (`crbg.export.shrink`), which all layers that read the unit share, for example those on
            one residual stream. Units that cannot be cut out, such as those behind a layer norm, have no gate then.
        temperature: Multiplies the logits inside the loss (`logit_scale` of the result); predictions do not change.
            Frozen weights cannot grow to scale up the logits, so networks with tiny initial outputs need this factor.
            If 0, it is chosen so that the scaled logits of the first batch have the standard deviation `spread`.
        spread: See `temperature`.
        signed: Whether a gate also chooses the sign of its weight (`crbg.search.sign_flips`), an extension. This option
            and those below change weights, so the result is not a strong ticket; `SearchResult.changed` lists the
            changed tensors.
        pretrain: Epochs of dense training before the search.
        joint_lr: Learning rate of the weights, if they are trained jointly with the gates; 0 freezes them.
        finetune: Epochs for which the kept weights are trained under the fixed mask after the search.
        finetune_mask: The mask of `finetune`: `found`, or `shuffled` for a control that permutes the found mask at
            random within each tensor, so that every layer keeps its density.
        weight_lr: Learning rate of Adam in `pretrain` and `finetune`.
        train_slopes: Whether PReLU slopes are trained jointly with the gates, while the weights stay frozen.
    """

    noise: float = option(0.5, least=0)
    penalty_sigma: float = option(0.5, above=0)
    mu0: float = 0.5
    mu0_spread: float = option(0.01, least=0)
    penalty: str = option("induce_sparse", check=_wrong_penalty)
    weight: float = option(1.0, least=0)
    product: float = option(0.0, least=0)
    adapt: float = 0.0
    lr: float = option(0.03, least=0)
    shared_lr: float = option(0.0, least=0)
    schedule: str = option("cosine", choices=SCHEDULES)
    beta1: float = option(0.9, least=0, below=1)
    beta2: float = option(0.999, least=0, below=1)
    anneal_to: float = -1.0
    source: str = option("normal", choices=SOURCES)
    learn_sigma: bool = False
    leak: float = share(0.0)
    reach: float = share(0.4)
    decide: float = share(0.5)
    firmness: float = option(1.0, least=0)
    tolerance: float = option(0.0, least=0)
    polish: float = share(0.0)
    steer: str = option("penalty", choices=STEERING)
    granularity: str = option("weight", choices=GRANULARITY)
    temperature: float = option(1.0, least=0)
    spread: float = option(1.0, above=0)
    signed: bool = False
    pretrain: int = option(0, least=0)
    joint_lr: float = option(0.0, least=0)
    finetune: int = option(0, least=0)
    finetune_mask: str = option("found", choices=FINETUNED)
    weight_lr: float = option(1e-3, least=0)
    train_slopes: bool = False


def conflicts(o: Options, density: float | None) -> Iterator[str]:
    """Yield one message for each invalid combination of options, or of an option with the density."""
    if o.polish and density is None:
        yield "crbg.polish needs a target density: set `density`"
    if o.steer != "penalty" and density is None:
        yield "crbg.steer needs a target density: set `density`"
    if o.shared_lr and o.granularity != "weight":
        yield "crbg.shared_lr needs one gate per weight: set `options.granularity` to `weight`"
    if o.signed and (o.noise or o.anneal_to > 0):
        yield "crbg.signed needs gates without noise: set `options.noise` to 0"
    if o.signed and o.steer != "penalty":
        yield "crbg.signed needs a penalty: set `options.steer` to `penalty`"
    if o.signed and o.granularity != "weight":
        yield "crbg.signed needs one gate per weight: set `options.granularity` to `weight`"
    if o.signed and (o.pretrain or o.joint_lr or o.finetune):
        yield "crbg.signed changes only signs: leave `pretrain`, `joint_lr` and `finetune` at 0"
    if o.product and (o.noise or o.granularity != "weight" or o.steer != "penalty" or o.adapt or density is None):
        yield (
            "crbg.product needs a density, gates on weights, a penalty and no noise: set `density`, `granularity` to "
            "`weight`, `steer` to `penalty`, and `noise` and `adapt` to 0"
        )
    if o.adapt and (o.granularity != "weight" or o.steer != "penalty"):
        yield "crbg.adapt needs a penalty on single weights: set `steer` to `penalty` and `granularity` to `weight`"
    if o.finetune_mask != "found" and not o.finetune:
        yield "crbg.finetune_mask needs training after the search: set `options.finetune`"


def work(o: Options, density: float | None, epochs: int) -> float:
    """Return the total number of epochs: the search, and the training before and after it."""
    return o.pretrain + epochs + o.finetune


def check_outputs(o: Options, outputs: Any) -> None:
    """Raise an error if there are no logits to scale, because `forward` returns the loss."""
    if outputs is None and o.temperature not in (0.0, 1.0):
        raise CrbgError("crbg.temperature scales logits, but `forward` returns the loss; return (outputs, labels)")


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Train gates on the weights, and keep the weights with mu > 1/2 (the mask `half`).

    If a density is requested and the density of `half` is off by more than 2 %, the k weights with the largest mu are
    kept instead (the mask `exact`).

    By default, the weights are random and frozen. With `pretrain` they are trained before the search and frozen during
    it; with `joint_lr` they are trained jointly with the gates; with `finetune` the kept weights are trained
    afterwards.
    """
    from crbg.gates import attach
    from crbg.gates.base import Fixed
    from crbg.gates.selection import candidate_mask
    from crbg.masks import controls
    from crbg.masks.mask import Mask
    from crbg.methods._scored import changed_since, copied_weights

    o = options
    slopes = _prelu_slopes(model) if o.train_slopes else {}
    if o.pretrain:
        with attach.only_candidates(model):
            _train_weights(model, task.stage("pretrain", o.pretrain), o)
    before = copied_weights(model) if o.signed else {}
    found = _search(model, task, o, slopes)
    if o.finetune_mask == "shuffled":
        some = candidate_mask(model)
        found.mask = controls.shuffle(found.mask, task.seed, Mask({name: some[name] for name in found.mask}))
    if o.finetune:
        with attach.gated(model, lambda n, w: Fixed(found.mask[n].to(w.device)) if n in found.mask else None):
            _train_weights(model, task.stage("finetune", o.finetune), o)
    trained = attach.weights(model) if o.pretrain or o.joint_lr or o.finetune else {}
    found.changed = dict.fromkeys([*trained, *slopes], "trained")
    found.changed |= changed_since(before, model, "flipped")
    return found


def _prelu_slopes(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the slopes of all PReLUs by name; it is an error if there is none."""
    import torch

    slopes = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.PReLU)}
    if not slopes:
        raise CrbgError(
            "`train_slopes` is on, but the network has no PReLU; for a LeNet, set `model_args.activation` to `prelu`"
        )
    return slopes


def _train_weights(model: nn.Module, task: SearchTask, o: Options) -> None:
    """Train the weights; if a fixed mask is attached to the model, train only those that it keeps."""
    import torch

    from crbg.gates.attach import weights

    task.fit(model, torch.optim.Adam(list(weights(model).values()), lr=o.weight_lr, fused=True))


def _search(model: nn.Module, task: SearchTask, o: Options, slopes: Mapping[str, nn.Parameter]) -> SearchResult:
    """Train the gates (with `joint_lr`, the weights too), then turn the gates into a mask."""
    import contextlib

    import torch

    from crbg.gates import attach
    from crbg.methods._crbg_gates import gate_maker, importance, on_weights
    from crbg.methods._scored import scores_of, soft_of
    from crbg.search.density_controller import BINS, Controlled
    from crbg.search.first_batch import logit_spread
    from crbg.search.product_penalty import ProductPenalty
    from crbg.search.shared_steps import SharedSteps
    from crbg.search.sign_flips import SignFlips
    from crbg.training.schedules import cosine, plateau

    weights = contextlib.nullcontext() if o.joint_lr else attach.frozen(model)
    with weights, attach.gated(model, gate_maker(model, task, o)):
        for slope in slopes.values():
            slope.requires_grad_(True)
        hook = _hook(model, task, o)
        raw = attach.weights(model)
        if o.adapt:
            hook.factors = [importance(raw[name], g, o.adapt) for g, name in hook.first.items()]
        scale = o.temperature or o.spread / logit_spread(model, task)
        groups = [{"params": [*(p for g in hook.gates for p in g.parameters()), *slopes.values()], "lr": o.lr}]
        steps: SearchHook = ProductPenalty(cast(Controlled, hook), o.product) if o.product else hook
        if o.shared_lr:
            steps = SharedSteps(steps, hook.gates)
            groups.append({"params": list(steps.parameters()), "lr": o.shared_lr})
        if o.joint_lr:
            groups.append({"params": list(raw.values()), "lr": o.joint_lr})
        adam = torch.optim.Adam(groups, betas=(o.beta1, o.beta2), fused=True)
        if o.signed:
            steps = SignFlips(steps, [raw[name] for name in hook.first.values()], hook.gates, adam)
        histograms = {"start": hook.picture()}
        with attach.sampling(model):
            schedule = plateau if o.schedule == "plateau" else cosine
            history = task.fit(model, adam, steps, lambda out, y: task.loss(_scaled(out, scale), y), schedule)
        histograms |= {"middle": hook.middle, "end": hook.picture()}
        gates = {name: gate for gate, name in hook.first.items()}
        scores, soft = scores_of(gates), soft_of(gates)
        readers = {name: hook.first[gate] for name, gate in hook.by_name.items()}
    if task.budget:
        mask = exact = task.budget.cut(scores, sum(int((s > 0.5).sum()) for s in scores.values()))
    else:
        mask, exact = _cut(scores, task.density, hook.total, _by_layer(o))
    found = on_weights(model, o, readers, {"mask": mask, "exact": exact, "scores": scores, "soft": soft})
    found.history, found.logit_scale = history, scale
    found.anatomy = {"mu": histograms, "bins": list(BINS)}
    if o.granularity != "weight":
        found.anatomy["units"] = mask.counts()
    return found


def _hook(model: nn.Module, task: SearchTask, o: Options) -> Penalised:
    """Return the hook that penalises the gates: with a fixed lambda, or with lambda adjusted to the target density."""
    from crbg.search.density_controller import Controlled, Penalised, Plan
    from crbg.search.shift_controller import Shifted

    anneal = None if o.anneal_to < 0 else o.anneal_to
    if task.density is None:
        return Penalised(model, o.penalty, o.weight, anneal)
    tolerance = o.tolerance or (0.1 if task.density >= 0.05 else 0.02)
    plan = Plan(reach=o.reach, decide=o.decide, firmness=o.firmness, tolerance=tolerance, polish=o.polish)
    if o.steer != "penalty":
        return Shifted(model, task.density, plan, anneal, task.budget, _by_layer(o))
    return Controlled(model, o.penalty, task.density, plan, anneal, task.budget)


def _by_layer(o: Options) -> LayerCounts | None:
    """Return the function that distributes the kept gates over the layers; None if all compete."""
    from crbg.masks.select import erk_counts, layer_counts

    return {"shift_layers": layer_counts, "shift_erk": erk_counts}.get(o.steer)


def _cut(
    scores: Mapping[str, Tensor], density: float | None, total: int, by_layer: LayerCounts | None
) -> tuple[Mask, Mask]:
    """Return the mask of the ticket, and the exact mask: the gates with the largest mu, of all or of each layer."""
    from crbg.masks.mask import Mask
    from crbg.masks.select import keep_count, select

    half = Mask({n: s > 0.5 for n, s in scores.items()})
    if density is None:
        exact = select(scores, half.kept)
    elif by_layer:  # at least one gate each, as in the search
        exact = select(scores, {n: max(1, k) for n, k in by_layer(scores, density).items()})
    else:
        exact = select(scores, keep_count(density, total))
    return half if abs(half.kept - exact.kept) <= LANDED * exact.kept else exact, exact


def _scaled(out: Any, scale: float) -> Any:
    from crbg.training.forward import with_logits

    return out if scale == 1.0 else with_logits(lambda t: t * scale, out)
