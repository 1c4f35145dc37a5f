import pytest
import torch
from torch import nn

from crbg.export import inputs
from crbg.export.inputs import arguments, difference, dynamic_shapes, first_output, microseconds, outputs, rows


class Scaled(nn.Module):
    def forward(self, x, factor=1.0):
        return {"sum": x.sum(1), "product": x * factor}


def test_inputs_are_a_tensor_a_tuple_or_keywords():
    x = torch.ones(2, 3)
    assert arguments(x) == ((x,), {})
    assert arguments([x, 2.0]) == ((x, 2.0), {})
    assert arguments({"x": x}) == ((), {"x": x})
    for example in ((x, torch.full((2, 1), 2.0)), {"x": x, "factor": torch.full((2, 1), 2.0)}):
        assert [t.tolist() for t in outputs(Scaled(), example)] == [[3.0, 3.0], [[2.0] * 3] * 2]


def test_batches_of_another_size_repeat_the_examples():
    x = torch.arange(6.0).reshape(3, 2)
    assert rows({"a": x, "b": [x[:2]]}, 4)["a"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert rows((x, x[:2]), 3)[1].tolist() == [[0, 1], [2, 3], [0, 1]]
    assert rows(x, 1).tolist() == [[0, 1]]


def test_the_first_axis_of_every_input_is_dynamic():
    free = {0: torch.export.Dim.DYNAMIC}
    x = torch.ones(2)
    assert dynamic_shapes(x) == (free,)
    assert dynamic_shapes((x, [x, x])) == (free, [free, free])
    assert dynamic_shapes({"x": x}) == {"x": free}


def test_the_difference_is_relative_to_the_largest_output():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([0.5])
    assert difference([a, b], [a, b + 0.25]) == pytest.approx(0.25 / 4)
    assert difference([a], [a[:1]]) == difference([a], [a, b]) == float("inf")
    assert not difference([a], [a * float("nan")]) <= 1.0


def test_many_inputs_are_passed_in_batches():
    seen = []

    def run(x):
        seen.append(len(x))
        return [x * 2, x]

    x = torch.arange(5.0)
    assert torch.equal(first_output(run, x, batch=2), x * 2)
    assert seen == [2, 2, 1]


def test_times_are_the_least_of_interleaved_rounds(monkeypatch):
    monkeypatch.setattr(inputs, "ROUNDS", 2)
    monkeypatch.setattr(inputs, "TIMED", (3,))
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0, 30.0, 34.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    found = microseconds({n: lambda x, n=n: calls.append((n, len(x))) for n in "ab"}, torch.ones(2, 1))
    assert found == {"a, batch 3, microseconds": 2e6, "b, batch 3, microseconds": 1e6}
    assert calls == [("a", 3), ("b", 3)] * 2
