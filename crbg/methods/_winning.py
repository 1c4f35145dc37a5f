"""What all winning tickets share: a dense warm-up, a ticket drawn on its weights, perhaps a control, training under the fixed mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from crbg.errors import CrbgError, suggest
from crbg.methods.contract import SearchResult, SearchTask
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.masks.mask import Mask
    from crbg.training.hooks import Row
    from crbg.training.loop import Loss

DROPS = {"halves": (1 / 2, 3 / 4), "thirds": (1 / 3, 2 / 3, 8 / 9)}
CONTROLS = ("none", "shuffle", "invert", "random", "reinit")
REDRAW = 2_000_003  # seed + this draws the fresh weights of the reinit control


@dataclass(frozen=True)
class Recipe:
    """How weights train, densely and under a mask: the schedule of Concrete Ticket Search on CIFAR-10 over the run's epochs.

    optimiser: sgd (with momentum) or adam. drops: where the rate is divided by ten, at half and at three quarters
        (`halves`) or at one and two thirds and eight ninths (`thirds`, usual on ImageNet); warmup: epochs in which it
        first rises from 0. clip: 0 minimises the mean loss; above 0 the SUM over a batch with the gradient's norm
        clipped to it, as the authors do. rewind: epochs of dense training after which the ticket is drawn, and to which
        weights, statistics and schedule go back before it is trained. train: off leaves the ticket as it was drawn;
        with rewind 0 that is a strong ticket. control (Frankle et al. 2021): shuffle the mask inside each tensor,
        invert its ranking tensor by tensor, a random mask of one density in all tensors, or reinit: fresh weights of
        another seed, for the epochs that remain. per_class: examples of each class in the batch on which scores and
        objectives are measured.
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
        """Name what the training depends on, without what is done to the ticket."""
        return {
            f.name: getattr(self, f.name) for f in fields(Recipe) if f.name not in ("train", "control", "per_class")
        }

    def parts(self) -> dict[str, Any]:
        """Name all that a ticket depends on, without what is done to it afterwards."""
        return {k: v for k, v in asdict(self).items() if k not in ("train", "control")}

    def epochs(self, whole: int, search: float = 0.0) -> float:
        """Count epochs in all: warm-up, search, training."""
        return self.rewind + search + (whole - self.rewind if self.train else 0)


def winning(
    model: nn.Module, task: SearchTask, o: Recipe, draw: Callable[[list[tuple[Tensor, Tensor]]], SearchResult]
) -> SearchResult:
    """Warm up, draw the ticket with `draw(batch)`, change it as the control says, train it.

    `draw` finds the model with its weights at the rewinding point and may leave it in any state.
    """
    from crbg import measure
    from crbg.masks import controls
    from crbg.search import objectives, saliency
    from crbg.training import distributed

    if o.control not in CONTROLS:
        raise CrbgError(f"unknown control {o.control!r}: {suggest(o.control, CONTROLS)}")
    if o.drops not in DROPS:
        raise CrbgError(f"unknown drops {o.drops!r}: {suggest(o.drops, DROPS)}")
    if o.warmup < 0:
        raise CrbgError(f"warmup {o.warmup} must be at least 0 epochs")
    if not 0 <= o.rewind <= task.epochs or (o.train and o.rewind == task.epochs):
        raise CrbgError(f"rewind {o.rewind} must lie between 0 and the {task.epochs} epochs of training")
    if o.control == "reinit" and task.redraw is None:
        raise CrbgError("control reinit needs the law of the initial weights: use `crbg run`, or draw them yourself")
    if not any(p.requires_grad for p in model.parameters()):
        raise CrbgError("every parameter of the model is frozen, so there is nothing to train; set requires_grad")
    if o.per_class < 1:
        raise CrbgError(f"per_class {o.per_class} must be at least 1")
    was = model.training
    model.train()
    initial = {n: t.detach().clone() for n, t in model.state_dict().items()}
    if o.rewind:

        def warm_up() -> dict[str, Tensor]:
            train(model, task, o, 0, o.rewind, "warmup")
            return dict(model.state_dict())

        model.load_state_dict(task.once("warmup", o.training(), warm_up))
    rewound = {n: t.detach().clone() for n, t in model.state_dict().items()}
    batch = saliency.balanced_batch(model, plain(task), o.per_class)
    model.load_state_dict(rewound)  # looking at the batch moved batch norm's statistics
    with measure.without_dropout(model):
        found = draw(batch)
        if distributed.size() > 1:  # every process scored for itself, and rounding may differ
            found.mask, found.scores = distributed.broadcast((found.mask, found.scores))
        model.load_state_dict(rewound)
        values = objectives.measure(model, found.mask, batch, task.loss)
    found.anatomy = {
        "objectives": _rounded(values),
        **({"search": _rounded(found.history[-1])} if found.history else {}),
    }
    model.load_state_dict(rewound)
    if o.control == "shuffle":
        found.mask = controls.shuffle(found.mask, task.seed)
    elif o.control == "invert":
        found.mask = controls.invert(found.scores, found.mask)
    elif o.control == "random":
        found.mask = controls.random(found.mask, found.mask.density, task.seed)
    elif o.control == "reinit":
        assert task.redraw is not None
        model.load_state_dict(dict(task.redraw(task.seed + REDRAW)))
    if o.train:
        found.start = {n: t.detach().clone().cpu() for n, t in model.state_dict().items() if not t.equal(initial[n])}
        found.history = train(model, task, o, o.rewind, task.epochs, "ticket", found.mask)
        found.soft = {}  # gates of weights that are no more
    role = "trained" if o.train or o.rewind else "redrawn"
    found.changed = {n: role for n, p in model.named_parameters() if not p.equal(initial[n])}
    found.running = {}  # those of the search are gone
    model.train(was)
    return found


def train(
    model: nn.Module, task: SearchTask, o: Recipe, first: int, last: int, stage: str, mask: Mask | None = None
) -> list[Row]:
    """Train all parameters from epoch `first` to `last` of the whole schedule, the weights under a mask where there is one."""
    import contextlib

    from crbg.gates import attach
    from crbg.gates.base import Fixed
    from crbg.training import distributed
    from crbg.training.batches import Later
    from crbg.training.hooks import Clip
    from crbg.training.schedules import optimiser

    under = attach.gated(model, lambda n, w: Fixed(mask[n].to(w.device, w.dtype))) if mask else contextlib.nullcontext()
    with under:
        asleep = [m for m in model.modules() if not m.training]  # dropout, where a search trains in between
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        size = (
            getattr(task.batches, "size", 0) if distributed.size() > 1 else 0
        )  # of the whole batch, of which this process has a share
        loss: Loss = task.loss if not o.clip else lambda out, y: task.loss(out, y) * (size or len(y))
        search = Clip(parameters, o.clip) if o.clip else None
        made = optimiser(o.optimiser, parameters, o.lr, o.momentum, o.weight_decay)

        def rate(progress: float) -> float:
            return steps((first + progress * (last - first)) / task.epochs, o.drops, o.warmup / task.epochs)

        later = Later(task.batches, first)
        rows = task.fit(model, made, search, loss, rate, epochs=last - first, stage=stage, batches=later)
        for name, gate in attach.gates(model).items():
            if mask and not gate.scores().bool().cpu().equal(mask[name]):
                raise CrbgError(
                    f"the checkpoint of stage {stage!r} belongs to another ticket; delete checkpoint.{stage}.pt and run again"
                )
        for m in asleep:
            m.eval()
    return rows


def steps(progress: float, drops: str = "halves", warmup: float = 0.0) -> float:
    """Raise the rate in proportion until `warmup`, a share of the training, then divide it by ten at every drop."""
    return (1.0, 0.1, 0.01, 0.001)[sum(progress >= d for d in DROPS[drops])] * (
        min(1.0, progress / warmup) if warmup else 1.0
    )


def plain(task: SearchTask) -> Any:
    """Give the task's batches without augmentation, where they have any."""
    return task.batches.plain() if hasattr(task.batches, "plain") else task.batches


def _rounded(values: dict[str, float]) -> dict[str, float | None]:
    from crbg.storage.atomic import finite

    return {k: finite(float(f"{v:.6g}")) for k, v in values.items()}
