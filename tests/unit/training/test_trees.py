import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crbg.training.trees import map_tensors, move, shapes, tensors

CPU = torch.device("cpu")
Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    name: str = "a"


class Outputs(OrderedDict):
    """A mapping with attributes, as the outputs of transformers."""


class Moving:
    """An object that moves itself, as the batches of torch_geometric."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Moving(self.x.to(device))


X = torch.arange(3.0)
TREES = {
    "tensor": X,
    "list": [X, "text", None],
    "tuple": (X, (X, 1)),
    "named tuple": Point(X, 2),
    "dict": {"a": X, "b": {"c": [X]}},
    "mapping": Outputs(logits=X, more=(X,)),
    "dataclass": Record(X),
    "object": SimpleNamespace(x=X, n=3),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b)


@pytest.mark.parametrize("name", TREES)
def test_a_mapped_structure_has_the_same_types_and_changed_tensors(name):
    tree = TREES[name]
    doubled = map_tensors(lambda t: 2 * t, tree)
    assert [t.tolist() for t in tensors(doubled)] == [[0.0, 2.0, 4.0]] * len(list(tensors(tree)))
    assert same(map_tensors(lambda t: t / 2, doubled), tree)
    assert all(t is X for t in tensors(tree)), "the original keeps its tensors"


def test_everything_is_moved_arrays_and_self_moving_objects_too():
    moved = move({"a": np.ones(2, np.float32), "b": [Moving(X)], "c": "text"}, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"][0].x.is_meta
    assert moved["c"] == "text"
    with torch.inference_mode():
        made = torch.ones(2)
    assert not move((made,), CPU)[0].is_inference()


def test_shapes_name_entries_and_types():
    assert shapes({"x": X, "y": (X.long(), 3)}) == "dict(x: (3,) float32, y: tuple((3,) int64, int))"
