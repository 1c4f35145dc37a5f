import pytest
import torch
from c_programs import needs_compiler
from torch import nn

from crbg.export.c.dense import DenseProgram, fully_connected
from crbg.measure.accuracy import eval_mode


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.LeakyReLU(0.25), nn.Linear(9, 21), nn.PReLU(21),
        nn.Linear(21, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    for _ in range(3):
        net(torch.randn(50, 3, 4) * 2 + 1)
    return net


@needs_compiler
@pytest.mark.parametrize("count", [1, 15, 16, 37])
def test_the_program_computes_the_network(count):
    net, x = network(), torch.randn(count, 3, 4)
    with eval_mode(net), torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(torch.from_numpy(DenseProgram(net, (3, 4)).call(x.numpy())()), expected)


def test_only_networks_without_convolutions_are_fully_connected():
    assert fully_connected(network(), (3, 4))
    assert not fully_connected(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), (1, 4, 4))
    assert not fully_connected(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)), (1, 4, 4))
