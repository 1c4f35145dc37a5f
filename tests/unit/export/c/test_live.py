import numpy as np
import pytest
import torch
from torch import nn

from crbg import CrbgError
from crbg.export.c.live import compact, prune_dead
from crbg.export.c.network import read


def linear(rows, bias=None):
    w = torch.tensor(rows)
    layer = nn.Linear(w.shape[1], len(w), bias=bias is not None)
    layer.weight.data = w
    if bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def test_dead_units_are_left_out():
    first = linear([[1.0, 2, 3], [4, 0, 0], [0, 0, 0], [5, 6, 0]])
    second = linear([[1.0, 2, 3, 0], [4, 5, 6, 0]])
    steps = read(nn.Sequential(first, nn.PReLU(4), second), (3,))
    alive = prune_dead(steps)
    assert [a.tolist() for a in alive] == [[True, True, False, False], [True, True]]
    small = compact(steps, alive)
    assert small[0].weight.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert small[1].weight.tolist() == [[1, 2], [4, 5]]
    assert (small[0].out_shape, small[1].in_shape) == ((2,), (2,))


def test_a_unit_with_a_bias_is_alive_without_weights():
    steps = read(nn.Sequential(linear([[0.0, 0], [1, 1]], [0.5, 0.0]), nn.ReLU(), linear([[1.0, 1]])), (2,))
    assert prune_dead(steps)[0].tolist() == [True, True]


def test_a_chain_of_dead_units_is_dead():
    middle = linear([[1.0, 0], [0, 1]])
    steps = read(nn.Sequential(linear([[0.0], [1]]), nn.ReLU(), middle, nn.ReLU(), linear([[1.0, 1]])), (1,))
    assert [a.tolist() for a in prune_dead(steps)] == [[False, True], [False, True], [True]]
    assert steps[1].weight.tolist() == [[0, 0], [0, 1]]
    assert steps[2].weight.tolist() == [[0, 1]]


def test_batch_norm_after_an_activation_revives_a_unit_that_is_zero():
    norm = nn.BatchNorm1d(2)
    norm.bias.data = torch.tensor([0.3, 0.0])
    steps = read(nn.Sequential(linear([[0.0], [0]]), nn.ReLU(), norm, linear([[1.0, 1]])), (1,))
    alive = prune_dead(steps)
    assert [a.tolist() for a in alive] == [[True, False], [True, False], [True]]
    assert compact(steps, alive)[1].finish.shift.tolist() == [pytest.approx(0.3)]


def test_a_channel_is_needed_if_any_of_its_positions_is():
    head = nn.Linear(3 * 4, 1, bias=False)
    head.weight.data.zero_()
    head.weight.data[0, 6] = 1.0  # channel 1
    steps = read(nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), head), (1, 2, 2))
    alive = prune_dead(steps)
    assert alive[0].tolist() == [False, True, False]
    small = compact(steps, alive)
    assert small[0].out_shape == (1, 2, 2)
    assert small[1].weight.tolist() == [[0, 0, 1, 0]]


def test_groups_are_resolved():
    conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    conv.weight.data = torch.tensor([[1.0, 2], [0, 3], [0, 0], [4, 5]])[:, :, None, None]
    first = nn.Conv2d(1, 4, 1, bias=False)
    first.weight.data = torch.tensor([1.0, 0, 1, 1])[:, None, None, None]
    steps = read(nn.Sequential(first, nn.ReLU(), conv), (1, 2, 2))
    alive = prune_dead(steps)
    assert alive[0].tolist() == [True, False, True, True]
    assert compact(steps, alive)[1].weight.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 4, 5]]


def test_the_outputs_keep_their_order_before_a_last_batch_norm():
    steps = read(nn.Sequential(linear([[1.0, 2], [3, 0], [0, 0]]), nn.ReLU(), nn.BatchNorm1d(3)), (2,))
    small = compact(steps, prune_dead(steps))
    assert np.array_equal(small[0].weight, [[1, 2], [3, 0], [0, 0]])


def test_a_constant_output_is_an_error():
    with pytest.raises(CrbgError, match="so the output is constant"):
        prune_dead(read(nn.Sequential(linear([[1.0]]), nn.ReLU(), linear([[0.0]], [1.0])), (1,)))
