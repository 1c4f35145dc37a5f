"""Attach gates to the weights of any unmodified `nn.Module`, and remove them again.

A gate is registered as a parametrisation of one weight (`torch.nn.utils.parametrize`, used in this file only). Each
access to the weight evaluates the gate, and the raw weight stays in `parametrizations.<name>.original`. No layer is
subclassed or replaced.
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

MakeGate = Callable[[str, Tensor], Gate | None]

# Parameters that can be gated, by the type of their module. Embeddings, normalisation and biases are never gated.
_GATED = {nn.Linear: ("weight",), _ConvNd: ("weight",), nn.Bilinear: ("weight",)}
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the raw weights that can be gated, by name, in the order of `model.named_modules()`.

    These are the weights of linear, bilinear, convolution and attention layers, with or without an attached gate.

    Raises:
        CrbgError: two modules share one weight. A gate attached to one of them would not affect the other.
    """
    found: dict[str, Tensor] = {}
    # All parameters are compared, because an embedding may share its table with the last layer.
    owners: dict[int, str] = {}
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


def attach(model: nn.Module, make: MakeGate, where: str = ".*") -> nn.Module:
    """Attach the gate `make(name, weight)` to every weight whose name matches `where`.

    Each gate is evaluated once per forward pass. `nn.MultiheadAttention` reads its weights several times, so torch's
    parametrisation cache is active during the forward pass of `model`: call `model` itself, not its submodules.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from crbg import Gaussian, attach, attached_gates, sampling
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model = attach(model, lambda name, w: Gaussian(torch.full_like(w, 0.5)))
        >>> list(attached_gates(model))
        ['0.weight', '2.weight']
        >>> with sampling(model):  # gates draw noise in this block
        ...     loss = model(torch.ones(3, 4)).square().mean()
        >>> loss.backward()
        >>> attached_gates(model)["0.weight"].mu.grad.shape
        torch.Size([8, 4])

    Args:
        model: Any module; it is changed in place.
        make: Builds the gate for one weight. If it returns None, the weight gets no gate.
        where: Regular expression that must match the full name of a weight.

    Returns:
        The same model.

    Raises:
        CrbgError: no weight matches, a weight already has a gate, or two modules share a weight.
    """
    owners = _owners(model)
    # All gates are built before the first is attached, so that the model is unchanged if `make` raises.
    made = {name: make(name, getattr(*owners[name])) for name in _selected(model, where)}
    several_reads = False
    for name, gate in made.items():
        if gate is None:
            continue
        module, attribute = owners[name]
        if isinstance(gate, Units):
            gate.shared = any(g is gate for g in attached_gates(model).values())
        _own_class(module)
        # unsafe=True skips torch's trial evaluation, which would advance the random generator of the search.
        parametrize.register_parametrization(module, attribute, gate, unsafe=True)
        several_reads |= isinstance(module, nn.MultiheadAttention | NonDynamicallyQuantizableLinear)
    shared = [g for g in attached_gates(model).values() if isinstance(g, Units) and g.shared]
    if several_reads or shared:
        hooks = _OneEvaluation(several_reads)
        model.register_forward_pre_hook(hooks.enter)
        model.register_forward_hook(hooks.leave, always_call=True)
    return model


def _selected(model: nn.Module, where: str) -> list[str]:
    """Return the names of the weights that match `where`, after checking that none of them has a gate."""
    raw, taken = weights(model), attached_gates(model)
    names = [n for n in raw if re.fullmatch(where, n)]
    if not raw:
        raise CrbgError(
            f"{type(model).__name__} has no weight that can be gated; only weights of linear, bilinear, convolution "
            "and attention layers can"
        )
    if not names:
        raise CrbgError(f"no weight matches {where!r}: {suggest(where, raw)}")
    for name in names:
        if name in taken:
            raise CrbgError(f"{name!r} already has a gate; call bake(model) or detach(model) first")
    return names


def attached_gates(model: nn.Module) -> dict[str, Gate]:
    """Return the gates of a model, by the name of the gated weight."""
    found = {}
    for name, (module, attribute) in _owners(model).items():
        if parametrize.is_parametrized(module, attribute):
            for item in cast(Any, module.parametrizations)[attribute]:
                if isinstance(item, Gate):
                    found[name] = item
    return found


def detach(model: nn.Module) -> nn.Module:
    """Remove all gates and return the same model, with its raw weights unchanged."""
    for name in attached_gates(model):
        module, attribute = _owners(model)[name]
        _own_class(module)
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _OneEvaluation):
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)
    return model


@torch.no_grad()
def bake(model: nn.Module, mask: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Remove all gates and write the gated weights into the model.

    Afterwards the model has the class and the `state_dict` keys that it had before `attach`.

    Args:
        model: A model with or without gates; it is changed in place.
        mask: One tensor of factors for each weight, by name: booleans or real gate values. Without a mask, each gate is
            evaluated without noise.

    Returns:
        The same model.

    Raises:
        CrbgError: the mask names a weight that the model lacks, or a mask tensor and its weight differ in shape.
    """
    raw = weights(model)
    for name, value in (mask or {}).items():
        if name not in raw:
            raise CrbgError(f"the model has no weight {name!r}: {suggest(name, raw)}")
        if value.shape != raw[name].shape:
            model_shape, mask_shape = tuple(raw[name].shape), tuple(value.shape)
            raise CrbgError(f"{name!r} has shape {model_shape} in the model but {mask_shape} in the mask")
    if mask is None:
        with sampling(model, False):
            baked = {name: gate(raw[name]) for name, gate in attached_gates(model).items()}
    else:
        baked = {name: Fixed(value.to(raw[name].device))(raw[name]) for name, value in mask.items()}
    detach(model)
    for name, w in baked.items():
        raw[name].copy_(w)
    return model


@contextmanager
def gated(model: nn.Module, make: MakeGate) -> Iterator[nn.Module]:
    """Attach gates for the duration of the block; they are removed even if the block raises."""
    attach(model, make)
    try:
        yield model
    finally:
        detach(model)


@contextmanager
def bypass(model: nn.Module) -> Iterator[nn.Module]:
    """Use the raw weights inside the block: each gate returns its weight unchanged and draws no noise."""
    with _flag(model, "bypassed", True):
        yield model


@contextmanager
def sampling(model: nn.Module, on: bool = True) -> Iterator[nn.Module]:
    """Switch the noise of all gates on (or off) inside the block."""
    with _flag(model, "sampling", on):
        yield model


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Set `requires_grad` of all parameters to False inside the block, so that no weight gradients are computed.

    Enter the block before calling `attach`, so that the parameters of the gates stay trainable.
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
    before = [(g, getattr(g, name)) for g in attached_gates(model).values()]
    for gate, _ in before:
        setattr(gate, name, value)
    try:
        yield
    finally:
        for gate, old in before:
            setattr(gate, name, old)


class _OneEvaluation:
    """Forward hooks on the root module that evaluate each gate once per pass; re-entrant and safe to deepcopy."""

    def __init__(self, cache: bool) -> None:
        self.cache, self.open = cache, list[Any]()

    def enter(self, model: nn.Module, _: Any) -> None:
        self._clear(model)
        if self.cache:
            self.open.append(parametrize.cached())
            self.open[-1].__enter__()

    def leave(self, model: nn.Module, _: Any, __: Any) -> None:
        self._clear(model)
        if self.open:
            self.open.pop().__exit__(None, None, None)

    @staticmethod
    def _clear(model: nn.Module) -> None:
        """Discard the values that shared unit gates sampled in the previous pass."""
        for gate in attached_gates(model).values():
            if isinstance(gate, Units):
                gate.current = None


def _own_class(module: nn.Module) -> None:
    """Replace the class of a parametrised module with a copy that no other module uses.

    torch creates one class per parametrised module, on which the weight is a property. After `copy.deepcopy`, both
    copies have the same class, so removing the gates of one copy would break the other.
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
