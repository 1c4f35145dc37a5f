"""Layer types whose weights carry gates: the registry of rules, and access to the weights of a layer.

A rule names the attributes of a layer that carry gates and the axis of its inputs. Rules are found by the type of the
layer or of one of its base classes. Layers of packages that may not be installed are found by the name of their class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from crbg.errors import CrbgError
from crbg.gates.base import Columns, Gate

Attributes = Sequence[str] | Callable[[nn.Module], Sequence[str]]
Slot = tuple[nn.Module, str]  # a layer and the attribute that holds its weight


@dataclass(frozen=True)
class Rule:
    """Which attributes of a layer carry gates, and which axis of these weights belongs to the layer's inputs."""

    attributes: Attributes
    axis: int | None = 1


_RULES: dict[type, Rule] = {}


def register_gated(kind: type[nn.Module], attributes: Attributes, axis: int | None = 1) -> None:
    """Let the weights of a layer type carry gates. The rule also holds for subclasses without a rule of their own.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from crbg import register_gated, weights
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.table = nn.Parameter(torch.ones(4, 3))
        >>> register_gated(Scaled, ["table"])
        >>> list(weights(nn.Sequential(Scaled())))
        ['0.table']

    Args:
        kind: The layer type.
        attributes: Names of the parameters that carry gates, or a function of the layer that returns these names.
            An empty list means that layers of this type carry no gates.
        axis: Axis of the layer's inputs in these parameters, used by unit gates; None if there is no such axis. Unit
            gates on these parameters are refused then.

    Raises:
        CrbgError: `kind` is not a subclass of `nn.Module`, or `attributes` is one string.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise CrbgError(f"register_gated needs a subclass of nn.Module, not {kind!r}")
    if isinstance(attributes, str):
        raise CrbgError(f"the attributes of {kind.__name__} must be a list of names; write [{attributes!r}]")
    _RULES[kind] = Rule(attributes if callable(attributes) else tuple(attributes), axis)


def _recurrent(layer: nn.Module) -> list[str]:
    """Return the weights of all layers, directions and projections of an RNN, GRU or LSTM."""
    return [name for name in cast(Any, layer)._flat_weights_names if name.startswith("weight")]


register_gated(nn.Linear, ["weight"])
register_gated(_ConvNd, ["weight"])
register_gated(_ConvTransposeNd, ["weight"], axis=0)
register_gated(nn.Bilinear, ["weight"], axis=None)  # two inputs
register_gated(nn.MultiheadAttention, ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"])
register_gated(nn.RNNBase, _recurrent, axis=None)
register_gated(nn.RNNCellBase, ["weight_ih", "weight_hh"], axis=None)


def rule(layer: nn.Module) -> Rule | None:
    """Return the rule of a layer, or None if its parameters carry no gates by default."""
    for kind in type(layer).__mro__:
        if kind in _RULES:
            return _RULES[kind]
        # Linear layers of packages that may not be installed.
        if kind.__name__ == "Conv1D" and _inputs_first(layer):
            return Rule(("weight",), axis=0)
        if kind.__name__ == "Linear" and kind.__module__.startswith("torch_geometric."):
            return Rule(("weight",))
    return None


def _inputs_first(layer: nn.Module) -> bool:
    """Return whether a layer has a weight of shape (in, out) and a bias of shape (out,), as transformers' Conv1D."""
    w, bias = raw(layer, "weight"), layer._parameters.get("bias")
    return w is not None and bias is not None and w.ndim == 2 and bias.shape == w.shape[1:]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and `torch.compile` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def reads_often(layer: nn.Module) -> bool:
    """Return whether one call of the layer reads a weight several times."""
    return isinstance(layer, nn.MultiheadAttention | nn.RNNBase)


def gate_of(layer: nn.Module, attribute: str) -> Gate | None:
    """Return the gate on a parameter of a layer, if there is one."""
    if not parametrize.is_parametrized(layer, attribute):
        return None
    return next((g for g in cast(Any, layer.parametrizations)[attribute] if isinstance(g, Gate)), None)


def gated_attributes(layer: nn.Module) -> list[str]:
    """Return the attributes of a layer that have a gate, in the order in which they got it."""
    parametrised: Any = layer._modules.get("parametrizations") or ()
    return [name for name in parametrised if gate_of(layer, name) is not None]


def raw(layer: nn.Module, attribute: str) -> nn.Parameter | None:
    """Return a parameter of a layer without evaluating its gate; None if it is absent or computed by other code."""
    if gate_of(layer, attribute) is not None:
        return cast(nn.Parameter, cast(Any, layer.parametrizations)[attribute].original)
    return layer._parameters.get(attribute)


def foreign(layer: nn.Module, attribute: str) -> tuple[str, str] | None:
    """Return what other code computes a weight, and the function that removes it; None for a plain parameter."""
    if parametrize.is_parametrized(layer, attribute):
        others = [m for m in cast(Any, layer.parametrizations)[attribute] if not isinstance(m, Gate)]
        if not others:
            return None
        return type(others[0]).__name__.strip(
            "_"
        ), f"torch.nn.utils.parametrize.remove_parametrizations(layer, {attribute!r})"
    if attribute in layer._parameters:
        return None
    # torch.nn.utils.prune and the old forms of weight_norm and spectral_norm compute the weight in a hook.
    if layer._parameters.get(f"{attribute}_g") is not None:
        return "weight_norm", "torch.nn.utils.remove_weight_norm(layer)"
    if layer._parameters.get(f"{attribute}_orig") is None:
        return None
    if f"{attribute}_mask" in layer._buffers:
        return "torch.nn.utils.prune", f"torch.nn.utils.prune.remove(layer, {attribute!r})"
    return "spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"


def underlying(layer: nn.Module, attribute: str) -> Tensor:
    """Return a weight without evaluating what computes it: for weight norm, the parameter that has its shape."""
    if parametrize.is_parametrized(layer, attribute):
        behind = cast(nn.Module, cast(Any, layer.parametrizations)[attribute])
        return list(behind.parameters(recurse=False))[-1]  # those of weight norm are g and v, in this order
    names = (attribute, f"{attribute}_orig", f"{attribute}_v")
    return next(p for n in names if (p := layer._parameters.get(n)) is not None)


def type_name(layer: nn.Module) -> str:
    """Return the name of a layer's type, without the prefix that torch gives to layers with parametrisations."""
    return parametrize.type_before_parametrizations(layer).__name__


def slots(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    """Yield the weights that carry gates by default: names, layers and attributes, in the order of the modules.

    Weights that other code computes, such as weight norm, are included.
    """
    for prefix, layer in model.named_modules():
        for attribute in defaults(layer):
            if raw(layer, attribute) is not None or foreign(layer, attribute):
                yield f"{prefix}.{attribute}".lstrip("."), (layer, attribute)


def defaults(layer: nn.Module) -> Sequence[str]:
    """Return the attributes of a layer that carry gates by default, whether or not the layer has them."""
    found = rule(layer)
    if found is None:
        return ()
    return found.attributes(layer) if callable(found.attributes) else found.attributes


def input_axis(layer: nn.Module, attribute: str) -> int | None:
    """Return the axis of a layer's inputs in a weight that carries gates by default; None if there is none."""
    found = rule(layer)
    return found.axis if found is not None and attribute in defaults(layer) else None


def entries(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    """Yield all parameters and buffers of a model: name, dictionary of the module, key in it, and tensor.

    A tied tensor is listed for each of its places, and a module that is used several times only once.
    """
    for prefix, module in model.named_modules():
        parts: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for part in parts:
            for key, tensor in part.items():
                if tensor is not None:
                    yield f"{prefix}.{key}".lstrip("."), part, key, tensor


def _every(model: nn.Module) -> Iterator[tuple[str, Slot, nn.Parameter]]:
    """Yield the name, the place and the raw value of all parameters; those on one layer with default gates come first.

    A tied weight is listed for each of its layers, and a layer that is used several times only once.
    """
    for prefix, layer in model.named_modules():
        if isinstance(layer, parametrize.ParametrizationList):
            continue
        for attribute in dict.fromkeys((*defaults(layer), *layer._parameters, *gated_attributes(layer))):
            if (w := raw(layer, attribute)) is not None:
                yield f"{prefix}.{attribute}".lstrip("."), (layer, attribute), w


def owners(model: nn.Module) -> dict[int, dict[str, Slot]]:
    """Return the places of each parameter by name; the key is the identity of the parameter. Tied ones have several."""
    found: dict[int, dict[str, Slot]] = {}
    for name, place, w in _every(model):
        found.setdefault(id(w), {})[name] = place
    return found


def main_name(places: Mapping[str, Slot]) -> str:
    """Return the name of a tied weight: in the first layer that gates it by default, or else in the first layer."""
    by_default = (name for name, (layer, attribute) in places.items() if attribute in defaults(layer))
    return next(by_default, next(iter(places)))


def gateable(model: nn.Module) -> dict[str, Slot]:
    """Return the weights that carry gates by default or have a gate, in the order of the modules.

    Weights that other code computes are left out, and tied weights are listed once, with their `main_name`.
    """
    every = owners(model)
    return {
        name: (layer, attribute)
        for name, (layer, attribute), w in _every(model)
        if (attribute in defaults(layer) or gate_of(layer, attribute) is not None) and name == main_name(every[id(w)])
    }


def slot(model: nn.Module, name: str) -> Slot | None:
    """Return the layer and the attribute of a parameter by its name, or None if the model has no such parameter."""
    prefix, _, attribute = name.rpartition(".")
    try:
        layer = model.get_submodule(prefix)
    except AttributeError:
        return None
    return (layer, attribute) if raw(layer, attribute) is not None else None


def columns_of(model: nn.Module, name: str) -> Columns:
    """Return how the input units of a layer lie in its weight, for unit gates.

    Raises:
        CrbgError: the weight has no axis for its inputs, as in bilinear and recurrent layers, or carries no gates by
            default, as a bias.
    """
    place = slot(unwrap(model), name)
    if place is None or (axis := input_axis(*place)) is None:
        raise CrbgError(
            f"unit gates need a weight with one axis of input units, and {name!r} has none; "
            "leave it out with `where`, or use one gate per weight"
        )
    # The weight of a grouped convolution covers the inputs of one group; transposed ones cover all inputs.
    layer, _ = place
    grouped = isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd)
    return Columns(axis, cast(_ConvNd, layer).groups if grouped else 1)


def fan_in(model: nn.Module, name: str, w: Tensor) -> int:
    """Return the number of inputs of each output unit."""
    place = slot(unwrap(model), name)
    if place is None or input_axis(*place) != 0:
        return w[0].numel() if w.ndim else 1
    return w.numel() // (w.shape[1] * getattr(place[0], "groups", 1))
