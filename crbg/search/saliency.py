"""Scores that rank the weights of a network before it is trained. Larger = keep first; `select` makes masks of them.

Every score is a function (model, weights, batches, loss, seed) -> scores. `weights` are the raw weights times the mask
so far, by name, and stand in for the model's own; `batches` is a class-balanced list of (x, y), over which gradients
are averaged. Batch norm takes the statistics of each batch, and its running ones may change: the caller restores them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from crbg import rng
from crbg.errors import CrbgError, suggest
from crbg.masks.mask import Mask
from crbg.masks.select import keep_count, select
from crbg.training.batches import Batches
from crbg.training.loop import Loss

Weights = Mapping[str, Tensor]
Some = Sequence[tuple[Tensor, Tensor]]
Score = Callable[[nn.Module, Weights, Some, Loss, int], dict[str, Tensor]]

HEAT = 200.0  # GraSP divides the outputs by it


def magnitude(model: nn.Module, weights: Weights, batches: Some, loss: Loss, seed: int) -> dict[str, Tensor]:
    """|theta|."""
    return {n: w.detach().abs() for n, w in weights.items()}


def random(model: nn.Module, weights: Weights, batches: Some, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Uniform numbers, the same for a seed on every machine."""
    return {
        n: torch.from_numpy(rng.uniform(w.numel(), seed, "random score", n)).reshape(w.shape).to(w.device)
        for n, w in weights.items()
    }


def snip(model: nn.Module, weights: Weights, batches: Some, loss: Loss, seed: int) -> dict[str, Tensor]:
    """SNIP (Lee et al. 2019): |dL/dm| at m = 1, which is |theta * dL/dtheta|."""
    leaves = _leaves(weights)
    slopes = _mean_gradient(model, leaves, batches, loss)
    return {n: (w * g).abs().detach() for (n, w), g in zip(leaves.items(), slopes, strict=True)}


def grasp(model: nn.Module, weights: Weights, batches: Some, loss: Loss, seed: int) -> dict[str, Tensor]:
    """GraSP (Wang et al. 2020): theta * (H g), so that what would lower the norm of the gradient most goes first.

    g and H are of the loss at outputs / 200. Its sign is kept: an absolute value ranks differently (`grasp_abs`).
    """
    leaves = _leaves(weights)

    def warm(out: Tensor, y: Tensor) -> Tensor:
        return loss(out / HEAT, y)

    # A weight that an earlier round dropped is none of the network's any more: neither g nor H knows it.
    slopes = [g * (w != 0) for g, w in zip(_mean_gradient(model, leaves, batches, warm), leaves.values(), strict=True)]
    total = [torch.zeros_like(w) for w in leaves.values()]
    for (x, y), share in zip(batches, _shares(batches), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            value = warm(functional_call(model, leaves, (x,)), y)
        first = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
        product = sum(((a * b).sum() for a, b in zip(slopes, first, strict=True)), start=value.new_zeros(()))
        for sum_so_far, part in zip(total, torch.autograd.grad(product, list(leaves.values())), strict=True):
            sum_so_far += share * part
    return {n: (w * h).detach() for (n, w), h in zip(leaves.items(), total, strict=True)}


def grasp_abs(model: nn.Module, weights: Weights, batches: Some, loss: Loss, seed: int) -> dict[str, Tensor]:
    """|theta * (H g)|, the variant that Frankle et al. 2021 found to be better than GraSP itself."""
    return {n: s.abs() for n, s in grasp(model, weights, batches, loss, seed).items()}


def synflow(model: nn.Module, weights: Weights, batches: Some, loss: Loss, seed: int) -> dict[str, Tensor]:
    """SynFlow (Tanaka et al. 2020): theta * dR/dtheta, R the summed outputs on one input of ones of the network of all |values|.

    Needs no data. Computed in float64 on a copy in eval mode, since R of a deep network overflows float32; nothing of
    the network itself is changed, its signs included.
    """
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for t in (*twin.parameters(), *twin.buffers()):
            t.abs_()
    leaves = {n: w.detach().double().abs().requires_grad_() for n, w in weights.items()}
    ones = torch.ones_like(batches[0][0][:1], dtype=torch.float64)
    slopes = torch.autograd.grad(functional_call(twin, leaves, (ones,)).sum(), list(leaves.values()))
    return {n: (w * g).detach() for (n, w), g in zip(leaves.items(), slopes, strict=True)}


SCORES: dict[str, Score] = {
    "magnitude": magnitude, "random": random, "snip": snip, "grasp": grasp, "grasp_abs": grasp_abs, "synflow": synflow,
}  # fmt: skip


def by_name(name: str) -> Score:
    """Return a score, or say which ones there are."""
    if name not in SCORES:
        raise CrbgError(f"unknown score {name!r}: {suggest(name, SCORES)}")
    return SCORES[name]


def prune(
    model: nn.Module, name: str, density: float, rounds: int, batches: Some, loss: Loss, seed: int
) -> dict[str, Tensor]:
    """Score and select in `rounds` rounds, at density^(t / rounds) after round t, within what was kept before.

    Returns the scores that rank all weights, as `select` takes them: those of the round in which a weight was dropped,
    later rounds first.
    """
    from crbg.gates.attach import weights

    score = by_name(name)
    if rounds < 1:
        raise CrbgError(f"rounds {rounds} must be at least 1")
    raw = {n: w.detach() for n, w in weights(model).items()}
    ranks = {
        n: torch.zeros(w.shape, dtype=torch.float64, device=w.device) for n, w in raw.items()
    }  # sorted where the network is
    total = sum(r.numel() for r in ranks.values())
    for t in range(rounds):
        mask = select(ranks, keep_count(density ** (t / rounds), total))
        scores = score(model, {n: w * mask[n].to(w.device) for n, w in raw.items()}, batches, loss, seed)
        ranks = ranked_after(ranks, scores, mask)
    return {n: r.cpu() for n, r in ranks.items()}


def ranked_after(ranks: Mapping[str, Tensor], scores: Mapping[str, Tensor], within: Mask) -> dict[str, Tensor]:
    """Rank the weights of a round before all that were dropped earlier: their place, from 0 to 1, plus the round's number."""
    device = next(iter(ranks.values())).device
    together = torch.cat([s.flatten() for s in scores.values()]).to(device)
    kept = {n: within[n].to(device) for n in scores}
    alive = torch.cat([t.flatten() for t in kept.values()])
    place = torch.zeros(together.numel(), dtype=torch.float64, device=device)
    count = int(alive.sum())
    order = together[alive].argsort(descending=True, stable=True)  # ties by position, as `select` breaks them
    places = torch.empty(count, dtype=torch.float64, device=device)
    places[order] = torch.arange(count - 1, -1, -1, dtype=torch.float64, device=device) / max(1, count)
    place[alive] = places
    base = max(float(r.max()) for r in ranks.values())
    parts = torch.split(place, [s.numel() for s in scores.values()])
    return {
        n: torch.where(kept[n], p.reshape(s.shape) + float(int(base) + 1), ranks[n])
        for (n, s), p in zip(scores.items(), parts, strict=True)
    }


def balanced_batch(model: nn.Module, batches: Batches, per_class: int, size: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Take the first `per_class` examples of each class in the order of the first epoch, cut into parts of at most `size`.

    A class with fewer examples gives all it has. The number of classes is that of the network's outputs. Where labels
    are no class numbers, the first batch is taken as it is.
    """
    kept: dict[int, int] = {}
    xs, ys, classes = [], [], 0
    for x, y in batches.epoch(0):
        if y.ndim != 1 or y.is_floating_point():
            return [(x, y)]
        if not classes:
            with torch.no_grad():
                classes = model(x[:2]).shape[1]
        for i, label in enumerate(y.tolist()):
            if kept.get(label, 0) < per_class:
                kept[label] = kept.get(label, 0) + 1
                xs.append(x[i].clone())  # a view would keep its whole batch in memory
                ys.append(y[i])
        if len(kept) == classes and min(kept.values()) == per_class:
            break
    return list(zip(torch.split(torch.stack(xs), size), torch.split(torch.stack(ys), size), strict=True))


def _leaves(weights: Weights) -> dict[str, Tensor]:
    return {n: w.detach().clone().requires_grad_() for n, w in weights.items()}


def _mean_gradient(model: nn.Module, leaves: Weights, batches: Some, loss: Loss) -> list[Tensor]:
    """Average dL/dtheta over the batches, without a graph."""
    total = [torch.zeros_like(w) for w in leaves.values()]
    for (x, y), share in zip(batches, _shares(batches), strict=True):
        value = loss(functional_call(model, dict(leaves), (x,)), y)
        for sum_so_far, part in zip(total, torch.autograd.grad(value, list(leaves.values())), strict=True):
            sum_so_far += share * part
    return total


def _shares(batches: Some) -> list[float]:
    total = sum(len(y) for _, y in batches)
    return [len(y) / total for _, y in batches]
