"""Winning tickets: train to the rewinding point, draw a ticket there, apply a control, train under the mask.

Iterative pruning, Concrete Ticket Search and pruning at initialisation share this procedure of Frankle et al. (2020,
2021) and differ only in how they draw the ticket. docs/vocabulary.md defines terms such as ticket, control and
rewinding point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.masks.mask import Mask
    from crbg.methods.contract import SearchResult, SearchTask
    from crbg.training.batches import Batches
    from crbg.training.hooks import Row
    from crbg.training.loop import Loss

    Examples = list[tuple[Any, Any]]
    Draw = Callable[[Examples], SearchResult]

DROPS = {"halves": (1 / 2, 3 / 4), "thirds": (1 / 3, 2 / 3, 8 / 9)}
CONTROLS = ("none", "shuffle", "invert", "random", "reinit")
REDRAW = 2_000_003  # offset added to the seed for the new weights of the control `reinit`


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of weight training, dense and under a mask.

    The defaults are those of Concrete Ticket Search (Arora & Teuscher 2025) on CIFAR-10.

    Attributes:
        optimiser: `sgd` or `adam`.
        lr: Peak learning rate.
        momentum: Momentum of `sgd`.
        weight_decay: Coefficient of the L2 penalty.
        drops: When the learning rate is divided by 10: after 1/2 and 3/4 of the epochs (`halves`), or after 1/3, 2/3
            and 8/9 (`thirds`, common on ImageNet).
        warmup: Number of epochs in which the learning rate rises linearly from 0.
        clip: If 0, the mean loss is minimised. If above 0, the sum of the losses over the batch is minimised, with the
            gradient norm clipped to this value, as in the code of Concrete Ticket Search.
        rewind: Number of epochs of dense training before the ticket is drawn. Weights, batch norm statistics and
            schedule return to this point before the ticket is trained.
        train: Whether to train the ticket. If it is not trained and `rewind` is 0, it is a strong ticket.
        control: A sanity check (Frankle et al. 2021). `shuffle` permutes the mask within each tensor, `invert` keeps
            the lowest scores of each tensor, `random` draws a mask of equal density in all tensors, and `reinit` draws
            new weights with another seed and trains them for the remaining epochs.
        per_class: Number of examples per class in the batch on which scores and objectives are computed.
    """

    optimiser: str = option("sgd", choices=("sgd", "adam"))
    lr: float = option(0.1, least=0)
    momentum: float = option(0.9, least=0, below=1)
    weight_decay: float = option(1e-3, least=0)
    drops: str = option("halves", choices=tuple(DROPS))
    warmup: float = option(0.0, least=0)
    clip: float = option(0.0, least=0)
    rewind: int = option(0, least=0)
    train: bool = True
    control: str = option("none", choices=CONTROLS)
    per_class: int = option(10, least=1)

    def training(self) -> dict[str, Any]:
        """Return the options that dense training depends on, by name."""
        return {
            f.name: getattr(self, f.name) for f in fields(Recipe) if f.name not in ("train", "control", "per_class")
        }

    def parts(self) -> dict[str, Any]:
        """Return the options that the drawn ticket depends on, by name: all except `train` and `control`."""
        return {k: v for k, v in asdict(self).items() if k not in ("train", "control")}

    def epochs(self, whole: int, search: float = 0.0) -> float:
        """Return the total number of epochs: dense training, search, and training under the mask."""
        return self.rewind + search + (whole - self.rewind if self.train else 0)


def winning(model: nn.Module, task: SearchTask, o: Recipe, draw: Draw) -> SearchResult:
    """Train densely to the rewinding point, draw the ticket there, apply the control, train under the mask.

    When `draw(batch)` is called, the weights are at the rewinding point. `draw` may leave the model in any state.
    """
    from crbg.measure.accuracy import training_mode
    from crbg.search import saliency
    from crbg.training.model_state import copied_tensors, put_tensors

    _check(model, task, o)
    with training_mode(model):
        initial = copied_tensors(model)
        if o.rewind:
            put_tensors(model, task.cached("warmup", o.training(), lambda: _warm_up(model, task, o)))
        rewound = copied_tensors(model) if o.rewind else initial
        batch = saliency.balanced_batch(model, plain(task), o.per_class)
        put_tensors(model, rewound)  # building the batch updated the batch norm statistics
        found = _draw(model, task, draw, batch, rewound)
        put_tensors(model, rewound)
        _apply_control(model, task, o, found)
        if o.train:
            found.start = {n: t.cpu() for n, t in copied_tensors(model).items() if not t.equal(initial[n])}
            found.history = train(model, task, o, Span("ticket", o.rewind, task.epochs), found.mask)
            found.soft = {}  # the gate values belonged to weights that training has changed
    role = "trained" if o.train or o.rewind else "redrawn"
    found.changed = {n: role for n, p in model.named_parameters() if not p.equal(initial[n])}
    found.running = {}  # training, or the return to the rewinding point, replaced the search's statistics
    return found


def _check(model: nn.Module, task: SearchTask, o: Recipe) -> None:
    if not 0 <= o.rewind <= task.epochs or (o.train and o.rewind == task.epochs):
        raise CrbgError(f"rewind {o.rewind} must lie between 0 and the {task.epochs} epochs of training")
    if o.control == "reinit" and task.redraw is None:
        raise CrbgError("control reinit needs the distribution of initial weights: use `crbg run`, or pass `redraw`")
    if not any(p.requires_grad for p in model.parameters()):
        raise CrbgError("every parameter of the model is frozen, so there is nothing to train; set requires_grad")


def _warm_up(model: nn.Module, task: SearchTask, o: Recipe) -> dict[str, Tensor]:
    """Train the dense network to the rewinding point."""
    from crbg.training.model_state import tensors_of

    train(model, task, o, Span("warmup", 0, o.rewind))
    return tensors_of(model)


def _draw(model: nn.Module, task: SearchTask, draw: Draw, batch: Examples, rewound: dict[str, Tensor]) -> SearchResult:
    """Draw the ticket with dropout disabled, and evaluate every objective for it."""
    from crbg import measure
    from crbg.search import objectives
    from crbg.training import distributed
    from crbg.training.model_state import put_tensors

    with measure.without_dropout(model):
        found = draw(batch)
        if distributed.size() > 1:  # each process computed its own scores, and rounding may differ
            found.mask, found.scores = distributed.broadcast((found.mask, found.scores))
        put_tensors(model, rewound)
        values = objectives.measure(model, found.mask, batch, task.loss)
    found.anatomy = {"objectives": _rounded(values)}
    if found.history:
        found.anatomy["search"] = _rounded(found.history[-1])
    return found


def _apply_control(model: nn.Module, task: SearchTask, o: Recipe, found: SearchResult) -> None:
    """Replace the mask by the control mask, or, for `reinit`, the weights by new initial weights."""
    from crbg.gates.selection import candidate_mask
    from crbg.masks import controls
    from crbg.masks.mask import Mask
    from crbg.training.model_state import put_tensors

    within = Mask(candidate_mask(model))
    if o.control == "shuffle":
        found.mask = controls.shuffle(found.mask, task.seed, within)
    elif o.control == "invert":
        found.mask = controls.invert(found.scores, found.mask)
    elif o.control == "random":
        found.mask = controls.random(found.mask, found.mask.kept / within.kept, task.seed, within)
    elif o.control == "reinit":
        assert task.redraw is not None
        put_tensors(model, task.redraw(task.seed + REDRAW))


@dataclass(frozen=True)
class Span:
    """Epochs `first` to `last` of the whole schedule, trained as one stage with its own checkpoint."""

    name: str
    first: int
    last: int


def train(model: nn.Module, task: SearchTask, o: Recipe, span: Span, mask: Mask | None = None) -> list[Row]:
    """Train all parameters over a span of the schedule, with the weights multiplied by the mask if one is given.

    Raises:
        CrbgError: the checkpoint of the span belongs to another mask.
    """
    from torch import nn

    from crbg.gates import attach
    from crbg.gates.base import Fixed
    from crbg.measure.accuracy import keeping_modes
    from crbg.training import distributed
    from crbg.training.batches import Later
    from crbg.training.forward import batch_size
    from crbg.training.hooks import Clip
    from crbg.training.schedules import optimiser

    under = attach.only_candidates(model)
    if mask:
        under = attach.gated(model, lambda n, w: Fixed(mask[n].to(w.device, w.dtype)))
    with under, keeping_modes(model):
        for m in model.modules():
            if isinstance(m, nn.modules.dropout._DropoutNd):
                m.train()  # dropout is disabled while `draw` runs
        parameters = [p for p in model.parameters() if p.requires_grad]
        # With several processes, `size` is the size of the whole batch, and this process gets only a share of it.
        size = getattr(task.batches, "size", 0) if distributed.size() > 1 else 0
        loss: Loss = task.loss if not o.clip else lambda out, y: task.loss(out, y) * (size or batch_size(out, y))
        clip = Clip(parameters, o.clip) if o.clip else None
        made = optimiser(o.optimiser, parameters, o.lr, o.momentum, o.weight_decay)

        def rate(progress: float) -> float:
            epoch = span.first + progress * (span.last - span.first)
            return steps(epoch / task.epochs, o.drops, o.warmup / task.epochs)

        stage = task.stage(span.name, span.last - span.first, Later(task.batches, span.first))
        rows = stage.fit(model, made, clip, loss, rate)
        for name, gate in attach.attached_gates(model).items():
            if mask and not gate.scores().bool().cpu().equal(mask[name]):
                raise CrbgError(
                    f"the checkpoint of stage {span.name!r} belongs to another ticket; "
                    f"delete checkpoint.{span.name}.pt and run again"
                )
    return rows


def steps(progress: float, drops: str = "halves", warmup: float = 0.0) -> float:
    """Return the factor on the learning rate: it rises linearly until `warmup`, and each drop divides it by 10.

    `progress` and `warmup` are fractions of the whole training.
    """
    rise = min(1.0, progress / warmup) if warmup else 1.0
    return (1.0, 0.1, 0.01, 0.001)[sum(progress >= d for d in DROPS[drops])] * rise


def plain(task: SearchTask) -> Batches:
    """Return the task's batches without augmentation."""
    unaugmented: Batches = task.batches.plain() if hasattr(task.batches, "plain") else task.batches
    return unaugmented


def _rounded(values: dict[str, float]) -> dict[str, float | None]:
    from crbg.storage.atomic import finite

    return {k: finite(float(f"{v:.6g}")) for k, v in values.items()}
