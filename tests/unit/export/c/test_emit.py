import numpy as np
from torch import nn

from crbg.export.c import emit
from crbg.export.c.network import Finish, Weighted, Window


def layer(rows, window=None):
    weight = np.array(rows, np.float32)
    return Weighted("fc", (weight.shape[1],), (len(weight),), weight, Finish(), window)


def test_the_units_of_a_linear_layer_lie_in_slices_of_four_the_largest_first():
    step = layer([[0, 0, 5], [1, 2, 3], [0, 0, 0], [4, 0, 6], [0, 7, 0], [8, 9, 0]])
    table = emit.gather(step)
    assert table.order == [1, 3, 5, 0, 4, 2]
    assert table.starts == [0, 3, 4]
    assert table.weights.reshape(4, 4).tolist() == [[1, 4, 8, 5], [2, 6, 9, 0], [3, 0, 0, 0], [7, 0, 0, 0]]
    assert table.columns.reshape(4, 4).tolist() == [[0, 0, 0, 2], [1, 2, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0]]
    assert emit.entries(step) == 16


def test_the_channels_of_a_convolution_keep_their_order():
    table = emit.gather(layer([[0, 5], [1, 2], [0, 0]], Window((1, 1), (1, 1), (1, 1), (1, 1), (0, 0))))
    assert (table.order, table.starts) == (None, [0, 1, 3, 3])
    assert table.weights.tolist() == [5, 1, 2]


def test_numbers_are_written_with_all_their_bits():
    values = np.array([0.1, 1 / 3, 1e-30, -123456.789, 3.0, 2.0**-149], np.float32)
    assert [np.float32(emit.number(v)[:-1]) for v in values] == values.tolist()
    assert emit.number(3) == "3.0f"


def test_only_the_linear_layers_at_the_end_are_computed_in_tiles():
    from crbg.export.c.network import read

    first = [nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.BatchNorm1d(4)]
    assert emit.tail(read(nn.Sequential(*first, nn.Linear(4, 3)), (1, 2, 2))) == 3
    assert emit.tail(read(nn.Sequential(*first), (1, 2, 2))) == 3
    assert emit.tail(read(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,))) == 0
