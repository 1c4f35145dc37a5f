"""Parts in memory: batches, subsets, common tensors and loaders."""

import pytest
import torch
from torch import nn

from crbg.data.loader import BatchLoader
from crbg.data.metrics import ACCURACY, BITS, MSE
from crbg.data.parts import Data, TensorPart
from crbg.errors import CrbgError


def numbered(count=10, start=0, **fields):
    """Return a part whose examples have the inputs (i, 2 i, 3 i) and the label i."""
    y = torch.arange(start, start + count)
    return TensorPart(y[:, None] * torch.tensor([1.0, 2.0, 3.0]), y, **fields)


def graph(count=10):
    features, edges = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1], [1, 2]])
    return TensorPart(torch.arange(count), torch.arange(count) % 3, (features, edges))


def consistent(part):
    return part.x.equal(part.y[:, None] * torch.tensor([1.0, 2.0, 3.0]))


# --- batches ---


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4, 2]), (10, [10]), (99, [10]), (0, [6, 4])])
def test_batches_walk_through_everything_in_order(size, lengths):
    batches = list(numbered(size=6).batches(size))
    assert [len(y) for _, y in batches] == lengths
    assert torch.cat([y for _, y in batches]).tolist() == list(range(10))
    assert all(consistent(TensorPart(x, y)) for x, y in batches)


@pytest.mark.parametrize("index", [slice(2, 8, 3), torch.tensor([2, 5]), torch.tensor([5, 2])])
def test_a_batch_has_the_inputs_and_labels_of_its_positions(index):
    x, y = numbered().batch(index)
    assert y.equal(torch.arange(10)[index])
    assert consistent(TensorPart(x, y))


def test_common_tensors_come_whole_before_the_inputs():
    part = graph()
    for (features, edges, nodes), y in [part.batch(torch.tensor([7, 1])), *part.batches(3)]:
        assert features is part.common[0]
        assert edges is part.common[1]
        assert y.equal(nodes % 3)
    assert part.batch(torch.tensor([7, 1]))[0][2].tolist() == [7, 1]


def test_the_shape_of_an_input_is_that_of_a_row_or_of_a_node():
    assert numbered().in_shape == (3,)
    assert graph().in_shape == (4,)
    assert TensorPart(torch.zeros(2, 5, 6), torch.zeros(2)).in_shape == (5, 6)


# --- subsets and devices ---


@pytest.mark.parametrize(
    ("kept", "labels"),
    [
        (slice(3), [0, 1, 2]),
        (slice(None, None, 4), [0, 4, 8]),
        (torch.arange(10) % 4 == 1, [1, 5, 9]),
        (torch.tensor([8, 0, 8]), [8, 0, 8]),
        (torch.zeros(10, dtype=torch.bool), []),
    ],
)
def test_subsets_keep_inputs_and_labels_together(kept, labels):
    part = numbered(size=3).take(kept)
    assert part.y.tolist() == labels
    assert len(part) == len(labels)
    assert consistent(part)
    assert part.size == 3


def test_subsets_and_joins_keep_the_common_tensors():
    part = graph()
    both = part.take(slice(2)).join(part.take(slice(7, 9)))
    assert both.x.tolist() == [0, 1, 7, 8]
    assert both.common is part.common
    assert both.batch(slice(None))[0][2].tolist() == [0, 1, 7, 8]


def test_a_join_appends_the_examples_and_changes_neither_part():
    first, second = numbered(3), numbered(4, start=5)
    both = first.join(second)
    assert both.y.tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert consistent(both)
    assert (len(first), len(second)) == (3, 4)


def test_a_part_moves_with_its_common_tensors():
    moved = graph().to(torch.device("meta"))
    assert moved.device == torch.device("meta")
    assert {t.device.type for t in (moved.x, moved.y, *moved.common)} == {"meta"}
    assert graph().device == torch.device("cpu")


# --- loaders ---


def test_an_epoch_gives_every_example_once():
    feed = BatchLoader(numbered(12), 4, seed=1)
    for epoch in range(3):
        batches = list(feed.epoch(epoch))
        assert [len(y) for _, y in batches] == [4, 4, 4]
        assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(12))
        assert all(consistent(TensorPart(x, y)) for x, y in batches)
    orders = [torch.cat([y for _, y in feed.epoch(e)]).tolist() for e in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_an_epoch_of_a_graph_gives_the_whole_graph_with_each_batch():
    part = graph(12)
    seen = list(BatchLoader(part, 4, seed=0).epoch(0))
    assert all(features is part.common[0] for (features, _, _), _ in seen)
    assert sorted(torch.cat([nodes for (_, _, nodes), _ in seen]).tolist()) == list(range(12))


@pytest.mark.parametrize("augmentation", [{"flip": True}, {"crop": 1}, {"flip": True, "crop": 1}])
def test_only_images_are_flipped_and_cropped(augmentation):
    with pytest.raises(CrbgError, match="flip and crop augment images, but the examples of this data set are no im"):
        BatchLoader(numbered(), 4, seed=0, **augmentation)


# --- data sets ---


def test_the_metric_determines_the_loss():
    parts = [numbered(3), numbered(2), numbered(1)]
    losses = [Data("made", *parts, 3, "", metric=m).loss for m in (ACCURACY, BITS, MSE)]
    assert losses == [nn.functional.cross_entropy, nn.functional.cross_entropy, nn.functional.mse_loss]


def test_a_data_set_moves_its_three_parts():
    data = Data("made", numbered(3), numbered(2), graph(), 3, "")
    moved = data.to(torch.device("meta"))
    assert {p.device.type for p in (moved.train, moved.validation, moved.test)} == {"meta"}
    assert [len(p) for p in (moved.train, moved.validation, moved.test)] == [3, 2, 10]
    assert data.in_shape == moved.in_shape == (3,)
    assert data.sized(0) is data
