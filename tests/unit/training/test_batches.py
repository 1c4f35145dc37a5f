import itertools

import pytest
import torch

from crbg.errors import CrbgError
from crbg.training.batches import LoaderBatches, TensorBatches

CPU = torch.device("cpu")
X = torch.arange(10.0)


def epochs(batches, count):
    return [[x.tolist() for x in batches.epoch(e)] for e in range(count)]


def test_tensors_are_shuffled_into_even_batches_and_every_example_is_used():
    first, second = epochs(TensorBatches(X, 4, CPU, lambda b: b, seed=1), 2)
    assert [len(b) for b in first] == [4, 3, 3]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == X.tolist()
    assert first != second
    assert epochs(TensorBatches(X, 4, CPU, lambda b: b, seed=1), 2) == [first, second]
    assert epochs(TensorBatches(X, 4, CPU, lambda b: b, seed=2), 1) != [first]


def test_the_order_of_an_epoch_does_not_depend_on_earlier_ones():
    batches = TensorBatches(X, 4, CPU, lambda b: b, seed=1)
    first, second = epochs(batches, 2)
    next(iter(batches.epoch(0)))
    assert [x.tolist() for x in batches.epoch(1)] == second
    assert [x.tolist() for x in batches.epoch(0, start=1)] == first[1:]


def test_rows_select_examples_and_without_a_seed_the_order_is_kept():
    data = {"x": X, "more": (X + 100,)}
    batches = TensorBatches(data, 2, CPU, lambda b: (b["x"], b["more"][0]), None, torch.tensor([1, 5, 7]))
    assert [(x.tolist(), y.tolist()) for x, y in batches.epoch(3)] == [([1.0, 5.0], [101.0, 105.0]), ([7.0], [107.0])]
    assert len(batches) == 2


class Stream:
    """A loader without a length that counts how often it starts."""

    def __init__(self, count):
        self.count, self.starts = count, 0

    def __iter__(self):
        self.starts += 1
        return iter([torch.tensor([float(i)]) for i in range(self.count)])


def test_a_stream_continues_over_epochs_and_starts_again():
    stream = Stream(3)
    batches = LoaderBatches(stream, CPU, steps=2)
    assert len(batches) == 2
    assert epochs(batches, 3) == [[[0.0], [1.0]], [[2.0], [0.0]], [[1.0], [2.0]]]
    assert stream.starts == 2
    next(iter(batches.epoch(0)))  # a batch that is only looked at does not end the stream
    assert epochs(batches, 1) == [[[1.0], [2.0]]]


def test_a_stream_needs_steps_and_batches():
    with pytest.raises(CrbgError, match="pass `steps`"):
        LoaderBatches(Stream(3), CPU)
    with pytest.raises(CrbgError, match="yields no batch"):
        epochs(LoaderBatches(Stream(0), CPU, steps=1), 1)


class Liar(list):
    """A loader with fewer batches than its length."""

    def __iter__(self):
        return iter([torch.ones(1)])


def test_a_loader_that_ends_early_is_an_error():
    with pytest.raises(CrbgError, match=r"length 3, but ends after 1 batches; pass `steps=1`"):
        epochs(LoaderBatches(Liar([0, 0, 0]), CPU), 1)
