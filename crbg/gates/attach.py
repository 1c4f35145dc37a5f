"""Attach gates to the weights of any unmodified `nn.Module`, and remove them again.

A gate is registered as a parametrisation of one weight (`torch.nn.utils.parametrize`, used in this file only). Each
access to the weight evaluates the gate; within a forward pass, only the first access does. The raw weight stays in
`parametrizations.<name>.original`. No layer is subclassed or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import CheckpointError

from crbg.errors import CrbgError
from crbg.gates import recurrent
from crbg.gates.base import Fixed, Gate
from crbg.gates.gaussian import Units
from crbg.gates.layers import columns_of, gate_of, gateable, gated_attributes, reads_often, unwrap
from crbg.gates.scope import Scope
from crbg.gates.selection import Where, candidates, check_shapes, check_tied, choose, raw_weight, tying
from crbg.gates.selection import weights as weights

MakeGate = Callable[[str, Tensor], Gate | None]


def attach(model: nn.Module, make: MakeGate, where: Where = None, tied: str | None = None) -> nn.Module:
    """Attach the gate `make(name, weight)` to every chosen weight.

    Each gate is evaluated once per forward pass of `model`, also if a layer reads its weight several times or is used
    several times. Frozen weights (`requires_grad` False) get gates too; leave them out with `where`, for example
    `where=lambda name, w: w.requires_grad`.

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
        where: The weights to gate: a regular expression that must match the full name of a weight, a list of names or
            expressions, or a function of (name, weight) that returns a bool. By default, all weights of linear,
            bilinear, convolution, attention and recurrent layers. The full name of a parameter selects it in any
            layer, such as an embedding; expressions and functions choose among the default weights.
        tied: What to do with a chosen weight that several layers share: "refuse" it (the default), or attach one gate
            for all of them ("share").

    Returns:
        The same model.

    Raises:
        CrbgError: no weight matches, a weight already has a gate, several layers share it, other code computes it
            (weight norm, spectral norm, pruning hooks), or a gate does not fit. The model is unchanged then.
    """
    inner = unwrap(model)
    chosen = choose(inner, where)
    for name, places in chosen.items():
        if any(gate_of(*place) is not None for place in places.values()):
            raise CrbgError(f"{name!r} already has a gate; call bake(model) or detach(model) first")
    # All gates are built before the first is attached, so that the model is unchanged if `make` raises.
    made = {name: gate for name in chosen if (gate := _built(inner, name, make)) is not None}
    for name in made:
        check_tied(chosen[name], tied or tying(inner))
    scope = Scope.of(inner) or Scope()
    for name, gate in made.items():
        gate.scope = scope
        for layer, attribute in chosen[name].values():
            _register(layer, attribute, gate)
            if reads_often(layer):
                scope.attach(layer)  # in case the layer is called without the model around it
    if made:
        scope.attach(inner)
    return model


def _built(model: nn.Module, name: str, make: MakeGate) -> Gate | None:
    """Build the gate of one weight, and fit it to the layout and the zeros of the weight."""
    gate = make(name, raw_weight(model, name))
    if isinstance(gate, Units):
        columns = columns_of(model, name)
        if gate.columns not in (None, columns):
            raise CrbgError(f"{name!r} and another weight with the same unit gates have their inputs on different axes")
        gate.columns = columns
    if gate is not None and (there := candidates(model).get(name)) is not None:
        gate.restrict(there)
    return gate


def _register(layer: nn.Module, attribute: str, gate: Gate) -> None:
    """Register a gate as the parametrisation of a weight, and remember the order of the layer's parameters."""
    order = tuple(layer._parameters)
    _own_class(layer)
    # unsafe=True skips torch's trial evaluation, which would advance the random generator of the search.
    parametrize.register_parametrization(layer, attribute, gate, unsafe=True)
    cast(Any, layer.parametrizations)[attribute].order = order
    if isinstance(layer, nn.RNNBase):
        recurrent.read_gated(layer)


def attached_gates(model: nn.Module) -> dict[str, Gate]:
    """Return the gates of a model, by the name of the gated weight. A gate on a tied weight is listed once."""
    found: dict[str, Gate] = {}
    for prefix, layer in unwrap(model).named_modules():
        for attribute in gated_attributes(layer):
            found[f"{prefix}.{attribute}".lstrip(".")] = cast(Gate, gate_of(layer, attribute))
    if len({id(gate) for gate in found.values()}) < len(found):  # unit gates with several weights, or tied weights
        return {name: found[name] for name in gateable(unwrap(model)) if name in found}
    return found


def detach(model: nn.Module) -> nn.Module:
    """Remove all gates and return the same model, with its raw weights and the order of its parameters unchanged.

    Parametrisations of other code are kept.
    """
    for layer in unwrap(model).modules():
        # In reverse order, so that each removal finds the parameters that were there when the gate was registered.
        for attribute in reversed(gated_attributes(layer)):
            _unregister(layer, attribute)
        Scope.detach(layer)
    return model


def _unregister(layer: nn.Module, attribute: str) -> None:
    """Remove the gate from a weight; its parametrisation is removed too if it contains nothing else."""
    parts = cast(Any, layer.parametrizations)[attribute]
    order = getattr(parts, "order", ())
    for i in reversed(range(len(parts))):
        if isinstance(parts[i], Gate):
            del parts[i]
    if len(parts):
        return
    _own_class(layer)
    parametrize.remove_parametrizations(layer, attribute, leave_parametrized=False)
    # torch appends the weight to the parameters; optimiser states refer to parameters by their position.
    before = [name for name in order if name in layer._parameters]
    own = layer._parameters
    own.update({name: own.pop(name) for name in [*before, *(n for n in own if n not in before)]})
    if isinstance(layer, nn.RNNBase) and not parametrize.is_parametrized(layer):
        layer._init_flat_weights()


@torch.no_grad()
def bake(model: nn.Module, mask: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Remove all gates and write the gated weights into the model.

    Afterwards the model has the class and the `state_dict` keys that it had before `attach`, in the same order.

    Args:
        model: A model with or without gates; it is changed in place.
        mask: One tensor of factors for each weight, by name: booleans or real gate values. Without a mask, each gate is
            evaluated without noise.

    Returns:
        The same model.

    Raises:
        CrbgError: the mask names a weight that the model lacks, or a mask tensor and its weight differ in shape.
    """
    check_shapes(model, mask or {})
    raw = {name: raw_weight(model, name) for name in (attached_gates(model) if mask is None else mask)}
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
def gated(model: nn.Module, make: MakeGate, where: Where = None, tied: str | None = None) -> Iterator[nn.Module]:
    """Attach gates for the duration of the block, as `attach` does; they are removed even if the block raises.

    Raises:
        CrbgError: gradient checkpointing cannot repeat a gate, because two checkpointed parts use the same weight.
    """
    attach(model, make, where, tied)
    scope = Scope.of(unwrap(model))
    try:
        yield model
    except RuntimeError as error:
        # Reentrant checkpointing evaluates gates in a backward pass; torch's error does not name checkpointing.
        again = scope is not None and scope.recomputed and "through the graph a second time" in str(error)
        if again or isinstance(error, CheckpointError):
            raise CrbgError(
                "gradient checkpointing cannot repeat a gate that several checkpointed parts of the model use; switch "
                f"checkpointing off, or leave the layers that are used several times out with `where` ({error})"
            ) from error
        raise
    finally:
        detach(model)


@contextmanager
def only_candidates(model: nn.Module) -> Iterator[nn.Module]:
    """Hold weights that cannot be kept at zero while weights are trained inside the block; see `candidates`."""
    some = candidates(model)
    if not some:
        yield model
        return
    with gated(model, lambda name, w: Fixed(some[name]) if name in some else None):
        yield model


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


def _own_class(module: nn.Module) -> None:
    """Replace the class of a parametrised module with a copy that no other module uses.

    torch creates one class per parametrised module, on which the weight is a property. After `copy.deepcopy`, both
    copies have the same class, so removing the gates of one copy would break the other.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
