"""Subset sums: build a ticket for a linear target without a search, as in proofs of the strong lottery ticket theorem.

The construction is that of Pensia et al. (2020) for one layer, in a network with one hidden layer of ReLU units and
inputs x >= 0. Each hidden unit h keeps the weight of one input j only, so its output is u_h x_j. For each entry A_ij of
the target, output i keeps those units of input j whose products u_h v_ih have the sum closest to A_ij.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from crbg.errors import CrbgError
from crbg.methods.contract import SearchResult, SearchTask, Traits
from crbg.search.limits import option

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
TRAITS = Traits("none", "determined by the construction")
RESIDUAL = 1e-3  # largest error of the linear map that is fitted to the data, relative to the targets


@dataclass(frozen=True)
class Options:
    """Size of the construction.

    Attributes:
        most: Largest number of units for each input, at most 40; further units are not used.
    """

    most: int = option(32, least=1, most=40)


def find(model: nn.Module, task: SearchTask, options: Options) -> SearchResult:
    """Build the ticket. The linear target is fitted to the training data by least squares.

    Raises:
        CrbgError: the network is no perceptron with one hidden layer, or the data are no linear map of inputs >= 0.
    """
    import torch

    from crbg.gates.attach import weights
    from crbg.masks.mask import Mask

    raw = {n: w.detach().double().cpu() for n, w in weights(model).items()}
    if len(raw) != 2 or any(w.ndim != 2 for w in raw.values()):
        raise CrbgError("subset_sum needs a network with one hidden layer and no convolution, such as lenet-64")
    (first, u), (second, v) = raw.items()
    target = linear_map(task)
    slopes = torch.relu(u)
    if target.shape != (len(v), u.shape[1]):
        raise CrbgError(f"subset_sum: the data have {target.shape[1]} inputs, but the network reads {u.shape[1]}")
    masks = torch.zeros_like(u, dtype=torch.bool), torch.zeros_like(v, dtype=torch.bool)
    for j, units in enumerate(assigned(slopes)):
        used = torch.tensor(units[: options.most], dtype=torch.long)
        for i in range(len(v)):
            chosen = used[closest_subset(slopes[used, j] * v[i, used], float(target[i, j]))]
            masks[0][chosen, j] = masks[1][i, chosen] = True
    return SearchResult(Mask({first: masks[0], second: masks[1]}))


def linear_map(task: SearchTask) -> Tensor:
    """Fit the linear map of the training data by least squares; shape (outputs, inputs), float64."""
    import torch

    x, y = (torch.cat(part).double().cpu() for part in zip(*task.batches.epoch(0), strict=True))
    if y.ndim != 2 or x.ndim != 2 or bool((x < 0).any()):
        raise CrbgError("subset_sum needs vectors of inputs >= 0 and vectors of targets")
    found = torch.linalg.lstsq(x, y, driver="gelsd").solution
    if float((x @ found - y).norm()) > RESIDUAL * float(y.norm()):
        raise CrbgError("subset_sum needs targets that are a linear map of the inputs, such as linear_teacher")
    return cast("Tensor", found.T)


def assigned(slopes: Tensor) -> list[list[int]]:
    """Assign each hidden unit to the input with the fewest units among those that it reads with a positive weight.

    Args:
        slopes: Shape (units, inputs): the output of a unit per unit of an input; 0 if it does not react to the input.

    Returns:
        The units of each input.
    """
    out: list[list[int]] = [[] for _ in range(slopes.shape[1])]
    for unit, row in enumerate(slopes.tolist()):
        possible = [j for j, slope in enumerate(row) if slope > 0]
        if possible:
            out[min(possible, key=lambda j: len(out[j]))].append(unit)
    return out


def closest_subset(values: Tensor, target: float) -> Tensor:
    """Return a boolean tensor that marks the subset whose sum is closest to the target.

    All sums of one half of the values are combined with the best sums of the other half, so that n values take time
    and memory of order 2^(n / 2).
    """
    import torch

    half = len(values) // 2
    left, right = subset_sums(values[:half]), subset_sums(values[half:])
    ordered, order = right.sort()
    at = torch.searchsorted(ordered, target - left).clamp(1, max(1, len(ordered) - 1))
    near = torch.stack([at - 1, at.clamp(max=len(ordered) - 1)])
    errors = (left + ordered[near] - target).abs()
    best = int(errors.argmin())
    one, other = best % len(left), int(order[near.flatten()[best]])
    bits = [one >> k & 1 for k in range(half)] + [other >> k & 1 for k in range(len(values) - half)]
    return torch.tensor(bits, dtype=torch.bool)


def subset_sums(values: Tensor) -> Tensor:
    """Return the sums of all subsets, shape (2^n,); bit k of the position says whether value k is in the subset."""
    import torch

    sums = torch.zeros(1, dtype=values.dtype)
    for value in values:
        sums = torch.cat([sums, sums + value])
    return sums
