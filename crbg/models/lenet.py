"""LeNet-300-100 and other fully connected networks, named by their hidden widths: `lenet-300-100`, `lenet-16-10`.

Layers have no biases. The thesis uses PReLU with initial slope 1/4. Since PReLU slopes are trained, the default here is
a leaky ReLU with slope 1/4; `activation="prelu"` selects PReLU.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from crbg.errors import CrbgError, suggest
from crbg.models._widths import check_widths

NAMES = r"lenet(-\d+)+"
DATA = ("images", "series", "teacher")

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "leaky": lambda units: nn.LeakyReLU(0.25),
    "prelu": lambda units: nn.PReLU(init=0.25),
    "prelu_per_unit": lambda units: nn.PReLU(units, init=0.25),
    "relu": lambda units: nn.ReLU(),
}


def build(name: str, in_shape: tuple[int, ...], classes: int, activation: str = "leaky") -> nn.Module:
    """Build the network for flattened inputs; its layers are called fc1, fc2, ...

    Raises:
        CrbgError: the activation is unknown, or a width is 0.
    """
    if activation not in ACTIVATIONS:
        raise CrbgError(f"unknown activation {activation!r}: {suggest(activation, ACTIVATIONS)}")
    widths = [math.prod(in_shape), *map(int, name.split("-")[1:]), classes]
    check_widths(name, widths)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        if i > 1:
            layers[f"act{i - 1}"] = ACTIVATIONS[activation](fan_in)
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out, bias=False)
    return nn.Sequential(layers)
