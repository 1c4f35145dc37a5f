"""Put gates on the weights of any unmodified `nn.Module`, and take them off again.

The only file that knows `torch.nn.utils.parametrize`. A gate becomes the parametrisation of one weight: every read of
the weight evaluates the gate, the raw weight stays in `parametrizations.<name>.original`, and nothing subclasses a
layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from crbg.errors import CrbgError, suggest
from crbg.gates.base import Fixed, Gate
from crbg.gates.gaussian import Units

Make = Callable[[str, Tensor], Gate | None]

# What may carry a gate, by the type of its owner; embeddings, norms and biases are not weights in this project's sense.
_GATED = {nn.Linear: ("weight",), _ConvNd: ("weight",), nn.Bilinear: ("weight",)}
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Name the raw weights that gates may be put on, gated or not, in the model's own order.

    Raises:
        CrbgError: two layers share one weight; a gate on one of them would leave the other dense.
    """
    found: dict[str, Tensor] = {}
    owners: dict[int, str] = {}  # of all parameters: an embedding may share its table with the last layer
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), name)
    for prefix, module in model.named_modules():
        for attribute in _attributes(module):
            raw = _raw(module, attribute)
            if raw is None:
                continue
            name = f"{prefix}.{attribute}".lstrip(".")
            twin = owners.get(id(raw), name)
            if twin not in (name, f"{prefix}.parametrizations.{attribute}.original".lstrip(".")):
                raise CrbgError(
                    f"{name!r} and {twin!r} share one weight; tied weights cannot be gated: untie them first"
                )
            found[name] = raw
    return found


def attach(model: nn.Module, make: Make, where: str = ".*") -> nn.Module:
    """Put `make(name, weight)` on every weight whose name matches `where` in full; None leaves a weight dense.

    Returns the same model. Each gate is evaluated once per forward pass: where a module reads its weight several times
    (`nn.MultiheadAttention`), torch's parametrisation cache is opened around the forward pass of `model`, so call
    `model` itself and not its parts.

    Raises:
        CrbgError: a weight has a gate already, or no weight matches.
    """
    raw = weights(model)
    names = [n for n in raw if re.fullmatch(where, n)]
    if not raw:
        raise CrbgError(
            f"{type(model).__name__} has no weight that a gate could stand on: linear, convolution or attention layers"
        )
    if not names:
        raise CrbgError(f"no weight matches {where!r}: {suggest(where, raw)}")
    taken = gates(model)
    for name in names:
        if name in taken:
            raise CrbgError(f"{name!r} has a gate already; bake() or detach() it first")
    owners = _owners(model)
    # All gates are made before the first is attached, so that a `make` that raises leaves the model as it was.
    made = {name: make(name, getattr(*owners[name])) for name in names}
    several_reads = False
    for name, gate in made.items():
        if gate is None:
            continue
        module, attribute = owners[name]
        if isinstance(gate, Units):
            gate.shared = any(g is gate for g in gates(model).values())
        _own_class(module)
        # unsafe=True skips torch's trial evaluation, which would draw from the noise stream.
        parametrize.register_parametrization(module, attribute, gate, unsafe=True)
        several_reads |= isinstance(module, nn.MultiheadAttention | NonDynamicallyQuantizableLinear)
    shared = [g for g in gates(model).values() if isinstance(g, Units) and g.shared]
    if several_reads or shared:
        guard = _OnePass(several_reads)
        model.register_forward_pre_hook(guard.enter)
        model.register_forward_hook(guard.leave, always_call=True)
    return model


def gates(model: nn.Module) -> dict[str, Gate]:
    """Return the gates of a model by the name of the weight they stand on."""
    found = {}
    for name, (module, attribute) in _owners(model).items():
        if parametrize.is_parametrized(module, attribute):
            for item in cast(Any, module.parametrizations)[attribute]:
                if isinstance(item, Gate):
                    found[name] = item
    return found


def detach(model: nn.Module) -> nn.Module:
    """Take all gates off and leave the raw weights, bytes unchanged."""
    for name in gates(model):
        module, attribute = _owner(model, name)
        _own_class(module)
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _OnePass):
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)
    return model


@torch.no_grad()
def bake(model: nn.Module, mask: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Replace gates by what they compute: raw weight * mask (booleans, or real gate values), or the noise-free gate.

    Afterwards the model has the class and the `state_dict` keys that it had before `attach`.
    """
    raw = weights(model)
    for name, value in (mask or {}).items():
        if name not in raw:
            raise CrbgError(f"there is no weight {name!r} to bake: {suggest(name, raw)}")
        if value.shape != raw[name].shape:
            raise CrbgError(f"{name!r} is {tuple(raw[name].shape)} in the model and {tuple(value.shape)} in the mask")
    if mask is None:
        with sampling(model, False):
            baked = {name: gate(raw[name]) for name, gate in gates(model).items()}
    else:
        baked = {name: Fixed(value.to(raw[name].device))(raw[name]) for name, value in mask.items()}
    detach(model)
    for name, w in baked.items():
        raw[name].copy_(w)
    return model


@contextmanager
def gated(model: nn.Module, make: Make) -> Iterator[nn.Module]:
    """Carry gates within the block; they are taken off at its end, also when a search fails or is interrupted."""
    attach(model, make)
    try:
        yield model
    finally:
        detach(model)


@contextmanager
def bypass(model: nn.Module) -> Iterator[nn.Module]:
    """Run the dense reference: within the block every gate returns its weight untouched and draws nothing."""
    with _flag(model, "bypassed", True):
        yield model


@contextmanager
def sampling(model: nn.Module, on: bool = True) -> Iterator[nn.Module]:
    """Switch the noise of all gates on (or off) within the block."""
    with _flag(model, "sampling", on):
        yield model


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Spare autograd the gradients of the weights within the block, for searches that do not need the graph through them.

    Enter it before `attach`. That weights stay as they are is guarded elsewhere, by their bytes.
    """
    before = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in before:
        p.requires_grad_(False)
    try:
        yield model
    finally:
        for p, wanted in before:
            p.requires_grad_(wanted)


@contextmanager
def _flag(model: nn.Module, name: str, value: bool) -> Iterator[None]:
    before = [(g, getattr(g, name)) for g in gates(model).values()]
    for gate, _ in before:
        setattr(gate, name, value)
    try:
        yield
    finally:
        for gate, old in before:
            setattr(gate, name, old)


class _OnePass:
    """Hooks that make one forward pass of the root one evaluation of each gate, re-entrant and safe to deepcopy."""

    def __init__(self, cache: bool) -> None:
        self.cache, self.open = cache, list[Any]()

    def enter(self, model: nn.Module, _: Any) -> None:
        self._forget(model)
        if self.cache:
            self.open.append(parametrize.cached())
            self.open[-1].__enter__()

    def leave(self, model: nn.Module, _: Any, __: Any) -> None:
        self._forget(model)
        if self.open:
            self.open.pop().__exit__(None, None, None)

    @staticmethod
    def _forget(model: nn.Module) -> None:
        for gate in gates(model).values():
            if isinstance(gate, Units):
                gate.current = None


def _own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own.

    torch makes one class per parametrised module and puts the weight on it as a property, but `copy.deepcopy` shares
    that
    class: taking the gates off one copy would break the other.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))


def _attributes(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION
    return next((names for kind, names in _GATED.items() if isinstance(module, kind)), ())


def _raw(module: nn.Module, attribute: str) -> Tensor | None:
    if parametrize.is_parametrized(module, attribute):
        return cast(Tensor, cast(Any, module.parametrizations)[attribute].original)
    value = getattr(module, attribute, None)
    return value if isinstance(value, nn.Parameter) else None


def _owners(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    return {
        f"{prefix}.{attribute}".lstrip("."): (module, attribute)
        for prefix, module in model.named_modules()
        for attribute in _attributes(module)
        if _raw(module, attribute) is not None
    }


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    return _owners(model)[name]
