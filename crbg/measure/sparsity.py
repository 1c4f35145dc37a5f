"""The structure of a mask: fractions of gate values, dead and silent units, attention heads, weights without effect."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crbg.errors import few
from crbg.gates.dtypes import fraction
from crbg.gates.layers import gateable, input_axis, unwrap
from crbg.gates.selection import multiplied
from crbg.masks.mask import Mask
from crbg.measure.accuracy import eval_mode
from crbg.training.forward import outputs_and_labels

ACTIVATIONS = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)


def shares(soft: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the fractions of gates that are exactly 0, exactly 1, and in between, per tensor and overall (`all`)."""
    flat = {n: z.flatten() for n, z in soft.items()}
    flat["all"] = torch.cat(list(flat.values()))

    def of(z: Tensor) -> dict[str, float]:
        kinds = {"zero": z == 0, "one": z == 1, "fractional": (z > 0) & (z < 1)}
        return {kind: fraction(found) for kind, found in kinds.items()}

    return {n: of(z) for n, z in flat.items()}


def dead_units(mask: Mask) -> dict[str, int]:
    """Count, for each weight tensor, the output units with no kept weight."""
    return {n: int((~t.flatten(1).any(1)).sum()) for n, t in mask.items()}


def without_weights(model: nn.Module, mask: Mask) -> list[str]:
    """Describe the tensors of a mask that keep no weight, and the outputs of the last layer that keep none.

    The last layer is the one with the last weight of `gateable`. Its outputs are left out if the mask does not contain
    this weight, or if the weight has no axis for them alone, as in recurrent layers.
    """
    empty = [name for name, t in mask.items() if not t.any()]
    found = [f"no weight in {', '.join(empty)}"] if empty else []
    last = next(reversed(gateable(unwrap(model)).items()), None)
    if last is None or last[0] not in mask or last[0] in empty:
        return found
    name, (layer, attribute) = last
    if (axis := input_axis(layer, attribute)) not in (0, 1):  # the outputs are on the other of these two axes
        return found
    outputs = mask[name].movedim(1 - axis, 0).flatten(1)
    dead = (~outputs.any(1)).nonzero().flatten().tolist()
    if dead:
        found.append(f"no weight for {len(dead)} of {len(outputs)} outputs of {name} ({few(dead, 10)})")
    return found


def heads(model: nn.Module, mask: Mask) -> dict[str, dict[str, list[int]]]:
    """Count the kept weights in the query, key and value projection of each attention head.

    Only tensors that contain all three projections are covered (`qkv.weight`, `in_proj_weight`).

    Returns:
        `{tensor: {"q": [one count per head], "k": [...], "v": [...]}}`.
    """
    out = {}
    for name, module in model.named_modules():
        for leaf in ("qkv.weight", "in_proj_weight"):
            full, count = f"{name}.{leaf}".lstrip("."), getattr(module, "num_heads", 0)
            if count and full in mask:
                rows = mask[full].reshape(3, count, -1).sum(-1)
                out[full] = dict(zip("qkv", rows.tolist(), strict=True))
    return out


@torch.no_grad()
def silent_units(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], multipliers: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Count the silent units of each activation module: units with the same output for every input.

    Such a unit is disconnected or never active. A unit is a channel, which is axis 1 in general. It is the last axis if
    the activation's parent module contains linear layers but no convolutions, as in a transformer.
    """
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        siblings = list(model.get_submodule(name.rpartition(".")[0]).children())
        convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in siblings)
        last = any(isinstance(m, nn.Linear) for m in siblings) and not convolutions

        def update(_: nn.Module, __: Any, out: Tensor) -> None:
            units = out.movedim(-1 if last else 1, 0).flatten(1)
            low, high = units.amin(1), units.amax(1)
            lowest[name] = torch.minimum(lowest[name], low) if name in lowest else low
            highest[name] = torch.maximum(highest[name], high) if name in highest else high

        return update

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, ACTIVATIONS)]
    try:
        if hooks:
            swapped = multiplied(model, multipliers) if multipliers else None
            with eval_mode(model):
                for x, _ in batches:
                    outputs_and_labels(model, x, None, swapped)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: int((lowest[n] == highest[n]).sum()) for n in lowest}


def alive(mask: Mask) -> Mask:
    """Remove weights that lead to or from a dead unit of a fully connected network, repeatedly, until none is left.

    The tensors of the mask must be consecutive layers in order, as in LeNet. The removed weights affect no logit, so
    only the remaining ones have to be stored.
    """
    layers = [t.clone() for t in mask.values()]
    while True:
        before = sum(int(t.sum()) for t in layers)
        for a, b in itertools.pairwise(layers):
            used = a.any(1) & b.any(0)
            a &= used[:, None]
            b &= used[None, :]
        if sum(int(t.sum()) for t in layers) == before:
            return Mask(dict(zip(mask, layers, strict=True)))
