"""Objectives of a ticket search: the six of Concrete Ticket Search (Arora & Teuscher 2025), and forward KL.

Each is a function (model, x, y) of a gated network and a batch. Its dense reference is the same network with all gates
bypassed, on the same batch. The constant factors in `FACTORS` come from the authors' public code; only the Lagrange
controller depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crbg.errors import CrbgError, suggest
from crbg.gates.attach import bypass, weights
from crbg.measure.sparsity import ACTIVATIONS
from crbg.training.forward import batch_size, logits, outputs_and_labels
from crbg.training.loop import Loss, Objective

FACTORS = {
    "loss": 100.0,
    "deltaloss": 1e4,
    "kl": 100.0,
    "forward_kl": 100.0,
    "feature": 100.0,
    "grad": 100.0,
    "gradnorm": 1.0,
}
NAMES = tuple(FACTORS)
SOFTMAX = ("kl", "forward_kl", "feature")  # compare the output probabilities of two networks
SECOND_ORDER = ("grad", "gradnorm")  # their gradient needs second derivatives
WHOLE_BATCH = ("deltaloss", *SECOND_ORDER)  # not a mean over examples, so a batch cannot be split across processes


def objective(name: str, loss: Loss) -> Objective:
    """Return an objective by name: a function (model, x, y) to minimise, without its factor in `FACTORS`.

    With p the network's output probabilities, L the loss, and "dense" the network without gates:

    - `loss`: L
    - `deltaloss`: |L / L_dense - 1|
    - `kl`: KL(p || p_dense), the reverse KL of the paper
    - `forward_kl`: KL(p_dense || p)
    - `feature`: squared distance between the standardised activations of the sparse and the dense network
    - `grad`: squared distance between the standardised weight gradients of the sparse and the dense network
    - `gradnorm`: -|dL/dtheta|, with the Euclidean norm over all weights

    Args:
        name: One of `NAMES`.
        loss: The training loss, a function (outputs, labels).

    Raises:
        CrbgError: the name is unknown.
    """
    made: dict[str, Objective] = {
        "loss": lambda model, x, y: loss(*outputs_and_labels(model, x, y)),
        "deltaloss": lambda *batch: (loss(*outputs_and_labels(*batch)) / loss(*dense(*batch)) - 1).abs(),
        "kl": lambda *batch: divergence(_logits(outputs_and_labels(*batch)), _logits(dense(*batch))),
        "forward_kl": lambda *batch: divergence(_logits(dense(*batch)), _logits(outputs_and_labels(*batch))),
        "feature": _feature,
        "grad": lambda model, x, y: _gradient_match(model, x, y, loss),
        "gradnorm": lambda model, x, y: -_norm(_gradients(model, x, y, loss)),
    }
    if name not in made:
        raise CrbgError(f"unknown objective {name!r}: {suggest(name, made)}")
    return made[name]


def measure(
    model: nn.Module, mask: Mapping[str, Tensor], batches: Sequence[tuple[Any, Any]], loss: Loss
) -> dict[str, float]:
    """Evaluate every objective for a binary mask; objectives that are not defined for the outputs are left out.

    Args:
        model: A network without gates.
        mask: The mask, one tensor for each weight name.
        batches: Pairs (x, y).
        loss: The training loss.

    Returns:
        The value of each objective, by name: the mean over batches, weighted by batch size.
    """
    from crbg.gates.attach import gated
    from crbg.gates.base import Fixed

    with gated(model, lambda name, w: Fixed(mask[name].to(w.device, w.dtype))), torch.no_grad():
        total = sum(batch_size(x, y) for x, y in batches)
        values = {}
        for name in NAMES:
            evaluate = objective(name, loss)
            try:
                values[name] = sum(batch_size(x, y) / total * float(evaluate(model, x, y)) for x, y in batches)
            except torch.OutOfMemoryError:
                raise  # the user is told what to change
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue  # these values are diagnostics, so none of them may end a run
        return values


@torch.no_grad()
def dense(model: nn.Module, x: Any, y: Any) -> tuple[Any, Any]:
    """Return the outputs of the dense reference, without an autograd graph, and the labels."""
    with bypass(model):
        return outputs_and_labels(model, x, y)


def check_outputs(out: Any) -> Tensor:
    """Return the logits in a model's outputs, if probabilities of classes can be computed from them.

    Raises:
        CrbgError: the outputs have no axis 1 with at least two classes.
    """
    found = logits(out)
    if found is None or found.ndim < 2 or found.shape[1] < 2:
        others = ", ".join(n for n in NAMES if n not in SOFTMAX)
        what = type(out).__name__ if found is None else f"of shape {tuple(found.shape)}"
        raise CrbgError(
            f"the objectives {', '.join(SOFTMAX)} compare probabilities over axis 1 of the outputs, which needs at "
            f"least two classes, but the outputs are {what}; choose an objective for any outputs: {others}"
        )
    return found


def _logits(of_batch: tuple[Any, Any]) -> Tensor:
    return check_outputs(of_batch[0])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(softmax(p) || softmax(q)) in nats, averaged over the batch, for logits of shape (n, classes)."""
    return nn.functional.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)


def _feature(model: nn.Module, x: Any, y: Any) -> Tensor:
    """Compute the squared distance between the standardised activations of the sparse and the dense network.

    It is averaged over layers, and the output probabilities count as one more layer.
    """
    with _features(model) as sparse:
        sparse.append(_logits(outputs_and_labels(model, x, y)).softmax(1))
    with _features(model) as reference:
        reference.append(_logits(dense(model, x, y)).softmax(1))
    gaps = [(standardised(a) - standardised(b)).square().mean() for a, b in zip(sparse, reference, strict=True)]
    return torch.stack(gaps).mean()


def standardised(t: Tensor, floor: float = 1e-6) -> Tensor:
    """Standardise each example's values to mean 0 and standard deviation 1; `floor` is added to the variance."""
    flat = t.flatten(1).to(torch.promote_types(t.dtype, torch.float32))
    return (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) + floor).sqrt()


@contextmanager
def _features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block, collect the outputs of all activation modules in the order in which they are computed."""
    outputs: list[Tensor] = []

    def collect(_: nn.Module, __: Any, out: Tensor) -> None:
        outputs.append(out)

    hooks = [m.register_forward_hook(collect) for m in model.modules() if isinstance(m, ACTIVATIONS)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _gradient_match(model: nn.Module, x: Any, y: Any, loss: Loss) -> Tensor:
    """Compute the squared distance between standardised sparse and dense gradients, averaged over tensors."""
    sparse = _gradients(model, x, y, loss)
    with bypass(model), torch.no_grad():
        reference = _gradients(model, x, y, loss)
    pairs = [
        (standardised(a[None], 1e-16), standardised(b[None], 1e-16)) for a, b in zip(sparse, reference, strict=True)
    ]
    gaps = [(a - b).square().mean() for a, b in pairs]
    return torch.stack(gaps).mean()


def _gradients(model: nn.Module, x: Any, y: Any, loss: Loss) -> list[Tensor]:
    """Compute dL/dtheta for all weights that can be gated; the `grad` fields of the model do not change.

    If gradients are enabled, the result has an autograd graph through the gates.
    """
    graph = torch.is_grad_enabled()
    raw = {id(w) for w in weights(model).values()}
    leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if id(p) in raw}
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
        value = loss(*outputs_and_labels(model, x, y, leaves))
    return list(torch.autograd.grad(value, list(leaves.values()), create_graph=graph))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum().clamp_min(1e-30).sqrt()
