"""What a ticket search may minimise: the six objectives of Concrete Ticket Search (Arora & Teuscher 2025), and forward KL.

Each is a function (model, x, y) of a gated network; its dense reference is the same network with all gates bypassed, on
the same batch. Constant factors, which only the Lagrange controller feels, are those of the authors' public code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from crbg.errors import CrbgError, suggest
from crbg.gates.attach import bypass, weights
from crbg.measure.sparsity import ACTIVATIONS
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
SECOND_ORDER = ("grad", "gradnorm")  # need the gates' gradient of a gradient
WHOLE_BATCH = ("deltaloss", *SECOND_ORDER)  # no means over examples, so processes cannot share a batch


def objective(name: str, loss: Loss) -> Objective:
    """Return an objective by name, a scalar to be minimised, without its factor; `loss` is what the network is trained on."""
    made: dict[str, Objective] = {
        "loss": lambda model, x, y: loss(model(x), y),
        "deltaloss": lambda model, x, y: (loss(model(x), y) / loss(dense(model, x), y) - 1).abs(),
        "kl": lambda model, x, y: divergence(model(x), dense(model, x)),
        "forward_kl": lambda model, x, y: divergence(dense(model, x), model(x)),
        "feature": _feature,
        "grad": lambda model, x, y: _gradient_match(model, x, y, loss),
        "gradnorm": lambda model, x, y: -_norm(_gradients(model, x, y, loss)),
    }
    if name not in made:
        raise CrbgError(f"unknown objective {name!r}: {suggest(name, made)}")
    return made[name]


def measure(
    model: nn.Module, mask: Mapping[str, Tensor], batches: Sequence[tuple[Tensor, Tensor]], loss: Loss
) -> dict[str, float]:
    """Measure a hard ticket on every objective, a mean over batches: how good it is at what others search for."""
    from crbg.gates.attach import gated
    from crbg.gates.base import Fixed

    with gated(model, lambda name, w: Fixed(mask[name].to(w.device, w.dtype))), torch.no_grad():
        total = sum(len(y) for _, y in batches)
        return {n: sum(len(y) / total * float(objective(n, loss)(model, x, y)) for x, y in batches) for n in NAMES}


@torch.no_grad()
def dense(model: nn.Module, x: Tensor) -> Tensor:
    """Give the outputs of the dense reference."""
    with bypass(model):
        return model(x)  # type: ignore[no-any-return]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q), mean over the batch, in nats.

    With p the sparse network it is the reverse KL of the paper.
    """
    return nn.functional.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)


def _feature(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over activations and the softmax of the outputs of the squared distance between standardised features."""
    with _features(model) as sparse:
        sparse.append(model(x).softmax(1))
    with _features(model) as reference:
        reference.append(dense(model, x).softmax(1))
    gaps = [(standardised(a) - standardised(b)).square().mean() for a, b in zip(sparse, reference, strict=True)]
    return torch.stack(gaps).mean()


def standardised(t: Tensor, floor: float = 1e-6) -> Tensor:
    """Shift and scale each example's values to mean 0 and standard deviation 1; `floor` keeps the variance of a dead layer from 0."""
    flat = t.flatten(1).to(torch.promote_types(t.dtype, torch.float32))
    return (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) + floor).sqrt()


@contextmanager
def _features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of all activations within the block, in the order in which they are computed."""
    seen: list[Tensor] = []

    def see(_: nn.Module, __: Any, out: Tensor) -> None:
        seen.append(out)

    hooks = [m.register_forward_hook(see) for m in model.modules() if isinstance(m, ACTIVATIONS)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _gradient_match(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Mean over tensors of the squared distance between standardised gradients, sparse against dense."""
    sparse = _gradients(model, x, y, loss)
    with bypass(model), torch.no_grad():
        reference = _gradients(model, x, y, loss)
    pairs = [
        (standardised(a[None], 1e-16), standardised(b[None], 1e-16)) for a, b in zip(sparse, reference, strict=True)
    ]
    gaps = [(a - b).square().mean() for a, b in pairs]
    return torch.stack(gaps).mean()


def _gradients(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> list[Tensor]:
    """DL / dtheta of every gateable weight; where gradients are on, with a graph through the gates.

    The weights keep no gradient.
    """
    graph = torch.is_grad_enabled()
    raw = {id(w) for w in weights(model).values()}
    leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if id(p) in raw}
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        value = loss(functional_call(model, leaves, (x,)), y)
    return list(torch.autograd.grad(value, list(leaves.values()), create_graph=graph))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum().clamp_min(1e-30).sqrt()
