"""Pruning scores of an untrained network: magnitude, random, SNIP, GraSP and SynFlow. Larger = keep first.

Each score is a function (model, weights, batches, loss, seed) that returns one tensor of scores for each weight name.
`weights` are the raw weights times the current mask; they replace the model's own weights. `batches` is a
class-balanced list of pairs (x, y), over which gradients are averaged. Batch norm uses the statistics of each batch and
may update its running statistics; the caller restores them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crbg import rng
from crbg.errors import CrbgError, suggest
from crbg.gates.dtypes import exact_device
from crbg.masks.mask import Mask
from crbg.masks.select import select, total_count
from crbg.training.batches import Batches
from crbg.training.forward import OWN_LOSS, UserBatch, batch_size, logits, outputs_and_labels, with_logits
from crbg.training.loop import Loss
from crbg.training.trees import map_tensors, shapes, tensors

Weights = Mapping[str, Tensor]
BatchList = Sequence[tuple[Any, Any]]
Score = Callable[[nn.Module, Weights, BatchList, Loss, int], dict[str, Tensor]]

TEMPERATURE = 200.0  # GraSP divides the logits by this value


def check_no_softmax(out: Tensor | None) -> None:
    """Check that a network does not end in a softmax or log-softmax, for `synflow`.

    Raises:
        CrbgError: the outputs are probabilities or their logarithms.
    """
    if out is None or out.ndim < 2 or out.shape[1] < 2:
        return
    for kind, p in (("softmax", out), ("log-softmax", out.exp())):
        if bool((p >= 0).all()) and torch.allclose(p.sum(1), torch.ones_like(p.sum(1)), atol=1e-3):
            raise CrbgError(
                f"synflow sums the outputs, but the model ends in a {kind}, whose outputs do not depend on the weights "
                "in that way; return logits and use a loss of logits, such as cross_entropy"
            )


def magnitude(model: nn.Module, weights: Weights, batches: BatchList, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Return |theta|."""
    return {n: w.detach().abs() for n, w in weights.items()}


def random(model: nn.Module, weights: Weights, batches: BatchList, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Return uniform random numbers, which depend on the seed and are identical on all machines."""
    return {
        n: torch.from_numpy(rng.uniform(w.numel(), seed, "random score", n)).reshape(w.shape).to(exact_device(w.device))
        for n, w in weights.items()
    }


def snip(model: nn.Module, weights: Weights, batches: BatchList, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Return SNIP's score (Lee et al. 2019): |dL/dm| at m = 1, which equals |theta * dL/dtheta|."""
    leaves = _leaves(weights)
    slopes = _mean_gradient(model, leaves, batches, loss)
    return {n: (w * g).abs().detach() for (n, w), g in zip(leaves.items(), slopes, strict=True)}


def grasp(model: nn.Module, weights: Weights, batches: BatchList, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Return GraSP's score (Wang et al. 2020): theta * (H g), with g and H the gradient and the Hessian of the loss.

    The logits are divided by 200. A large score means that removing the weight would lower the gradient norm, so the
    weight is kept. The sign matters; `grasp_abs` takes the absolute value.
    """
    leaves = _leaves(weights)

    def tempered(out: Any, y: Any) -> Tensor:
        return loss(with_logits(lambda t: t / TEMPERATURE, out), y)

    # Weights pruned in an earlier round contribute neither to g nor to H.
    gradients = _mean_gradient(model, leaves, batches, tempered)
    slopes = [g * (w != 0) for g, w in zip(gradients, leaves.values(), strict=True)]
    total = [torch.zeros_like(w) for w in leaves.values()]
    for (x, y), share in zip(batches, _shares(batches), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
            value = tempered(*outputs_and_labels(model, x, y, leaves))
        first = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
        product = sum(((a * b).sum() for a, b in zip(slopes, first, strict=True)), start=value.new_zeros(()))
        for sum_so_far, part in zip(total, torch.autograd.grad(product, list(leaves.values())), strict=True):
            sum_so_far += share * part
    return {n: (w * h).detach() for (n, w), h in zip(leaves.items(), total, strict=True)}


def grasp_abs(model: nn.Module, weights: Weights, batches: BatchList, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Return |theta * (H g)|, the variant that Frankle et al. 2021 found to be better than GraSP."""
    return {n: s.abs() for n, s in grasp(model, weights, batches, loss, seed).items()}


def synflow(model: nn.Module, weights: Weights, batches: BatchList, loss: Loss, seed: int) -> dict[str, Tensor]:
    """Return SynFlow's score (Tanaka et al. 2020): theta * dR/dtheta.

    R is the sum of the outputs for one input of ones, with every parameter and buffer replaced by its absolute value.
    The score uses no data. It is computed in float64, because R overflows float32 for deep networks, and on a copy in
    eval mode, so that the model does not change.

    Raises:
        CrbgError: the inputs are integers, or the outputs contain no logits.
    """
    place = exact_device(next(iter(weights.values())).device)
    twin = copy.deepcopy(model).to(place).double().eval()
    with torch.no_grad():
        for t in (*twin.parameters(), *twin.buffers()):
            t.abs_()
    leaves = {n: w.detach().to(place).double().abs().requires_grad_() for n, w in weights.items()}
    x, y = batches[0]
    out, y = outputs_and_labels(twin, _ones(x), y, leaves)
    total = logits(out)
    if total is None or y is OWN_LOSS:
        raise CrbgError("synflow sums the outputs of the network; let `forward` return (outputs, labels)")
    slopes = torch.autograd.grad(total.sum(), list(leaves.values()))
    return {n: (w * g).detach() for (n, w), g in zip(leaves.items(), slopes, strict=True)}


def _ones(x: Any) -> Any:
    """Return one example in which every floating-point number is 1, in float64; a `UserBatch` keeps all examples."""
    if isinstance(x, UserBatch):
        return UserBatch(map_tensors(_one_like, x.batch), x.forward)
    if not all(t.is_floating_point() for t in tensors(x)):
        raise CrbgError(
            f"synflow replaces the inputs by ones and needs floating-point inputs, but they are {shapes(x)}; "
            "choose another score: " + ", ".join(name for name in SCORES if name != "synflow")
        )
    return map_tensors(lambda t: _one_like(t[:1]), x)


def _one_like(t: Tensor) -> Tensor:
    place = exact_device(t.device)
    return torch.ones_like(t, dtype=torch.float64, device=place) if t.is_floating_point() else t.to(place)


SCORES: dict[str, Score] = {f.__name__: f for f in (magnitude, random, snip, grasp, grasp_abs, synflow)}


def by_name(name: str) -> Score:
    """Return the score function with this name.

    Raises:
        CrbgError: the name is unknown.
    """
    if name not in SCORES:
        raise CrbgError(f"unknown score {name!r}: {suggest(name, SCORES)}")
    return SCORES[name]


def prune(
    model: nn.Module, name: str, density: float, rounds: int, batches: BatchList, loss: Loss, seed: int
) -> dict[str, Tensor]:
    """Prune in rounds and return a ranking of the weights.

    Each round scores the remaining weights and keeps those with the largest scores. After round t the density is
    density^(t / rounds).

    Args:
        model: An untrained network; only its batch norm running statistics may change.
        name: Name of the score.
        density: Density after the last round.
        rounds: Number of rounds.
        batches: Class-balanced pairs (x, y).
        loss: The training loss.
        seed: Seed of the score `random`.

    Returns:
        One ranking of all weights, to be passed to `select`. Weights pruned in a later round rank higher, and weights
        pruned in the same round are ranked by their scores in that round.

    Raises:
        CrbgError: the score is unknown, or `rounds` is less than 1.
    """
    from crbg.gates.selection import candidates, weights

    score = by_name(name)
    if rounds < 1:
        raise CrbgError(f"rounds {rounds} must be at least 1")
    raw = {n: w.detach() for n, w in weights(model).items()}
    ranks = {n: torch.zeros(w.shape, dtype=torch.float64, device=exact_device(w.device)) for n, w in raw.items()}
    for n, there in candidates(model).items():
        ranks[n].masked_fill_(~there.to(ranks[n].device), -math.inf)
    for t in range(rounds):
        mask = select(ranks, total_count(ranks, density ** (t / rounds)))
        scores = score(model, {n: w * mask[n].to(w.device) for n, w in raw.items()}, batches, loss, seed)
        ranks = ranked_after(ranks, scores, mask)
    return {n: r.cpu() for n, r in ranks.items()}


def ranked_after(ranks: Mapping[str, Tensor], scores: Mapping[str, Tensor], within: Mask) -> dict[str, Tensor]:
    """Rank the weights that are left in a round above all weights that were pruned earlier.

    The rank of a remaining weight is the position of its score among those of the remaining weights, scaled to [0, 1),
    plus an integer that grows by 1 in each round.

    Args:
        ranks: The ranking after the previous rounds.
        scores: Scores of this round.
        within: The weights that previous rounds kept.
    """
    device = next(iter(ranks.values())).device
    together = torch.cat([s.flatten() for s in scores.values()]).to(device)
    kept = {n: within[n].to(device) for n in scores}
    alive = torch.cat([t.flatten() for t in kept.values()])
    place = torch.zeros(together.numel(), dtype=torch.float64, device=device)
    count = int(alive.sum())
    order = together[alive].argsort(descending=True, stable=True)  # ties are broken by position, as in `select`
    places = torch.empty(count, dtype=torch.float64, device=device)
    places[order] = torch.arange(count - 1, -1, -1, dtype=torch.float64, device=device) / max(1, count)
    place[alive] = places
    base = max(float(r.max()) for r in ranks.values())
    parts = torch.split(place, [s.numel() for s in scores.values()])
    return {
        n: torch.where(kept[n], p.reshape(s.shape) + float(int(base) + 1), ranks[n])
        for (n, s), p in zip(scores.items(), parts, strict=True)
    }


def balanced_batch(model: nn.Module, batches: Batches, per_class: int, size: int = 256) -> list[tuple[Any, Any]]:
    """Return the first `per_class` examples of each class, in the order of the first epoch.

    If a class has fewer examples, all of them are used. The first batch is returned if inputs or outputs are not plain
    tensors, or if labels are not class indices.

    Args:
        model: The network; its number of outputs is the number of classes.
        batches: The training batches.
        per_class: Number of examples of each class.
        size: Maximum size of a returned batch.

    Returns:
        Pairs (x, y).
    """
    kept: dict[int, int] = {}
    xs, ys, classes = [], [], 0
    for x, y in batches.epoch(0):
        plain = isinstance(x, Tensor) and isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()
        if not plain:
            return [(x, y)]
        if not classes:
            with torch.no_grad():
                out = logits(model(x[:2]))
            if out is None or out.ndim != 2:
                return [(x, y)]
            classes = out.shape[1]
        for i, label in enumerate(y.tolist()):
            if kept.get(label, 0) < per_class:
                kept[label] = kept.get(label, 0) + 1
                xs.append(x[i].clone())  # a view would keep the whole batch in memory
                ys.append(y[i])
        if len(kept) == classes and min(kept.values()) == per_class:
            break
    return list(zip(torch.split(torch.stack(xs), size), torch.split(torch.stack(ys), size), strict=True))


def _leaves(weights: Weights) -> dict[str, Tensor]:
    return {n: w.detach().clone().requires_grad_() for n, w in weights.items()}


def _mean_gradient(model: nn.Module, leaves: Weights, batches: BatchList, loss: Loss) -> list[Tensor]:
    """Return the mean of dL/dtheta over all batches, weighted by batch size, without an autograd graph."""
    total = [torch.zeros_like(w) for w in leaves.values()]
    for (x, y), share in zip(batches, _shares(batches), strict=True):
        value = loss(*outputs_and_labels(model, x, y, leaves))
        for sum_so_far, part in zip(total, torch.autograd.grad(value, list(leaves.values())), strict=True):
            sum_so_far += share * part
    return total


def _shares(batches: BatchList) -> list[float]:
    sizes = [batch_size(x, y) for x, y in batches]
    return [size / sum(sizes) for size in sizes]
