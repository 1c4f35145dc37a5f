"""What a ticket is worth: accuracy in each reading, density per layer, dead units, FLOPs, size on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crbg.attach import bypass, weights
from crbg.init import RUNNING
from crbg.mask import Mask

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], multipliers: Mapping[str, Tensor] | None = None) -> float:
    """Percentage of labels predicted in eval mode, weights taken times `multipliers` (a mask or soft gates) by name.

    `model` carries no gates. A tie between logits counts as the first class, as argmax does.
    """
    was = model.training
    model.eval()
    raw = weights(model)
    swapped = {n: raw[n] * m.to(raw[n].device) for n, m in (multipliers or {}).items()}
    hits = total = 0
    for x, y in batches:
        hits += int((torch.func.functional_call(model, swapped, (x,)).argmax(1) == y).sum())
        total += len(y)
    model.train(was)
    return 100.0 * hits / total


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether a network keeps running statistics, which must be re-estimated under a binary mask."""
    return any(isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats for m in model.modules())


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Give each module's mode (in training or not), and set them again at the end of the block."""
    was = {m: m.training for m in model.modules()}
    try:
        yield was
    finally:
        for module, training in was.items():
            module.training = training


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Search and measure without dropout, while batch norm keeps to the statistics of each batch."""
    modules = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    for m in modules:
        m.eval()
    try:
        yield
    finally:
        for m in modules:
            m.train()


@contextmanager
def recalibrated(model: nn.Module, images: Iterable[Tensor], multipliers: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
    """Within the block, BatchNorm statistics are cumulative averages over `images` (fixed order) under the mask."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    momenta, was = [m.momentum for m in norms], model.training
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # torch's way of asking for a cumulative average
    model.train()
    raw = weights(model)
    swapped = {n: raw[n] * m.to(raw[n].device) for n, m in (multipliers or {}).items()}
    try:
        with torch.no_grad(), without_dropout(model):
            for x in images:
                torch.func.functional_call(model, swapped, (x,))
        yield model
    finally:
        model.load_state_dict(before)
        model.train(was)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum


def running_statistics(model: nn.Module, images: Iterable[Tensor], multipliers: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Estimate BatchNorm statistics as `recalibrated` does, and return them by name; the model keeps its own."""
    with recalibrated(model, images, multipliers):
        return running(model)


def running(model: nn.Module) -> dict[str, Tensor]:
    """Copy a network's running statistics, by name."""
    return {n: t.detach().clone() for n, t in model.state_dict().items() if n.rsplit(".", 1)[-1] in RUNNING}


def shares(soft: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Share of gates that are exactly 0, exactly 1, and in between, per tensor and together ("all")."""
    flat = {n: z.flatten() for n, z in soft.items()}
    flat["all"] = torch.cat(list(flat.values()))
    return {
        n: {"zero": float((z == 0).double().mean()), "one": float((z == 1).double().mean()),
            "fractional": float(((z > 0) & (z < 1)).double().mean())}
        for n, z in flat.items()
    }  # fmt: skip


def dead_units(mask: Mask) -> dict[str, int]:
    """Count the output units of each tensor that no kept weight reaches."""
    return {n: int((~t.flatten(1).any(1)).sum()) for n, t in mask.items()}


def heads(model: nn.Module, mask: Mask) -> dict[str, dict[str, list[int]]]:
    """Count the kept weights of each attention head's query, key and value, where one tensor holds all three: {tensor: {"q": [...]}}."""
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
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], multipliers: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Count, for each activation module, the units whose output is the same for every image: cut off, or never active.

    A unit is a channel: axis 1 behind a convolution, the last axis where linear layers stand beside the activation, as in a transformer.
    """
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        beside = list(model.get_submodule(name.rpartition(".")[0]).children())
        last = any(isinstance(m, nn.Linear) for m in beside) and not any(isinstance(m, nn.modules.conv._ConvNd) for m in beside)

        def see(_: nn.Module, __: Any, out: Tensor) -> None:
            units = out.movedim(-1 if last else 1, 0).flatten(1)
            low, high = units.amin(1), units.amax(1)
            lowest[name] = torch.minimum(lowest[name], low) if name in lowest else low
            highest[name] = torch.maximum(highest[name], high) if name in highest else high

        return see

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, ACTIVATIONS)]
    try:
        if hooks:
            accuracy(model, batches, multipliers)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: int((lowest[n] == highest[n]).sum()) for n in lowest}


def alive(mask: Mask) -> Mask:
    """Drop the weights of a fully connected chain that lead into, or out of, a dead unit, until nothing changes.

    Tensors are taken as consecutive layers in the mask's order; only meaningful for networks like LeNet. The dropped
    weights change no logit, so the count that remains is what an engineer would have to store.
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


def flops(model: nn.Module, example: Tensor, mask: Mask | None = None) -> dict[str, float]:
    """Multiply-adds times two of one forward pass of one example: dense, and with only the kept weights of each layer.

    Dense counts come from torch's FlopCounterMode. A gated layer's share is its density; whatever carries no gate
    (attention products) counts in full, and so do the input projections inside `nn.MultiheadAttention`.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was, fused = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path of nn.MultiheadAttention is not counted
    # Fused attention is not counted on every device.
    with torch.no_grad(), bypass(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example[:1])
    torch.backends.mha.set_fastpath_enabled(fused)
    model.train(was)
    counts = {n: float(sum(c.values())) for n, c in counter.get_flop_counts().items()}
    dense = counts.get("Global", 0.0)
    if mask is None:
        return {"dense": dense, "kept": dense}
    root = type(model).__name__
    per_layer = {n: t.float().mean().item() for n, t in mask.items()}
    plain = {n.removesuffix(".weight"): d for n, d in per_layer.items() if n.endswith(".weight")}
    saved = sum((1 - d) * counts.get(f"{root}.{n}", 0.0) for n, d in plain.items())
    return {"dense": dense, "kept": dense - saved}
