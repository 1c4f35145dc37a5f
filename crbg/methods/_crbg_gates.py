"""CRBG's gates on weights, units or residual streams, and their results for single weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crbg.methods.contract import SearchResult, SearchTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crbg.gates.attach import MakeGate
    from crbg.gates.base import Gate
    from crbg.gates.gaussian import Gaussian
    from crbg.methods.crbg import Options


def gate_maker(model: nn.Module, task: SearchTask, o: Options) -> MakeGate:
    """Return a function that builds the gate of a weight tensor, or returns None for a tensor that stays dense.

    The initial mu = mu0 + mu0_spread * N(0, 1) is a function of the seed and the tensor's name.
    """
    import torch

    from crbg import rng
    from crbg.gates import attach
    from crbg.gates.gaussian import Gaussian, Units
    from crbg.gates.layers import columns_of
    from crbg.gates.product import Product
    from crbg.search.first_batch import shared_units

    first = next(iter(attach.weights(model)), "")
    # The outputs of an attention head are adjacent input columns of the projection; these columns share a gate.
    heads = {
        f"{name}.proj.weight": m.num_heads
        for name, m in model.named_modules()
        if hasattr(m, "num_heads") and hasattr(m, "proj")
    }

    streams = shared_units(model, task) if o.granularity == "stream" else {}
    shared: dict[tuple[int, ...], Gate] = {}

    def make(name: str, w: Tensor) -> Gate | None:
        if o.granularity == "stream":
            if name not in streams:
                return None
            units = streams[name]
            if units not in shared:
                shared[units] = new(name, w, torch.Size([len(units)]))
            return shared[units]
        if o.granularity == "unit" and name == first:
            return None
        whole = o.granularity == "weight"
        return new(name, w, w.shape if whole else torch.Size([heads.get(name) or columns_of(model, name).count(w)]))

    def new(name: str, w: Tensor, shape: torch.Size) -> Gate:
        jitter = torch.from_numpy(rng.normal(shape.numel(), task.seed, "mu", name)).reshape(shape)
        mu = (o.mu0 + o.mu0_spread * jitter).to(torch.float32).to(w.device)
        if o.product:
            layout = columns_of(model, name)
            nu = torch.full((layout.count(w),), max(o.mu0, 1.0)).to(mu)
            gate = Product(mu, nu, penalty_sigma=o.penalty_sigma)
            gate.columns = layout
            return gate
        kind = Gaussian if o.granularity == "weight" else Units
        return kind(
            mu, noise=o.noise, penalty_sigma=o.penalty_sigma, source=o.source, learn_sigma=o.learn_sigma, leak=o.leak
        )

    return make


def on_weights(
    model: nn.Module, o: Options, readers: Mapping[str, str], gates: Mapping[str, Mapping[str, Tensor]]
) -> SearchResult:
    """Expand per-gate values (mask, exact, scores, soft) to per-weight values; a unit's gate applies to its columns.

    `readers` names the gates of each weight: the first weight that they act on.
    """
    from crbg.gates.layers import columns_of
    from crbg.gates.selection import candidates, weights
    from crbg.masks.mask import Mask

    def widen(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if o.granularity == "weight":
            return dict(values)
        wide = {
            n: columns_of(model, n).expand(values[first], raw[n]).expand(raw[n].shape).contiguous()
            for n, first in readers.items()
        }
        # Weights that are exactly zero are never kept; their scores are 0 here, since a unit is kept or dropped whole.
        return wide | {n: wide[n] * there.cpu() for n, there in candidates(model).items() if n in wide}

    raw = weights(model)
    mask, exact, scores, soft = (widen(gates[kind]) for kind in ("mask", "exact", "scores", "soft"))
    return SearchResult(Mask(mask), Mask(exact), scores, soft)


def importance(w: Tensor, gate: Gaussian, power: float) -> Tensor:
    """Return |w|^power for each gate, divided by its mean; weights that are exactly zero count as the smallest one."""
    size = w.detach().float().abs()[gate.candidates if gate.candidates is not None else ...]
    factor = size.clamp(min=float(size[size > 0].min())) ** power
    return factor / factor.mean()
