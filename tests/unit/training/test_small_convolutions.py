import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crbg.training import small_convolutions
from crbg.training.precision import computing
from crbg.training.small_convolutions import AsProducts, convolution

CASES = {  # input, weight, stride, padding
    "1 x 1": ((2, 16, 5, 4), (7, 16, 1, 1), (1, 1), (0, 0)),
    "1 x 1 with stride": ((2, 16, 5, 4), (7, 16, 1, 1), (2, 2), (0, 0)),
    "3 x 3": ((3, 16, 2, 2), (5, 16, 3, 3), (1, 1), (1, 1)),
    "3 x 3 with stride": ((3, 16, 4, 3), (5, 16, 3, 3), (2, 2), (1, 1)),
    "2 x 3, uneven": ((3, 17, 4, 5), (5, 17, 2, 3), (2, 3), (0, 2)),
    "whole map": ((3, 16, 3, 3), (5, 16, 3, 3), (1, 1), (0, 0)),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_products_equal_convolutions_forward_and_backward(case, bias):
    torch.manual_seed(0)
    x, w, stride, padding = CASES[case]
    x = torch.randn(x, dtype=torch.double).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(w, dtype=torch.double, requires_grad=True)
    b = torch.randn(w.shape[0], dtype=torch.double, requires_grad=True) if bias else None
    expected = F.conv2d(x, w, b, stride, padding)
    found = convolution(x, w, b, stride, padding)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    upstream, inputs = torch.randn_like(expected), [t for t in (x, w, b) if t is not None]
    for a, c in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, c)


def products(layer, x):
    """Return the number of matrix products in a forward pass."""
    seen = []

    def count(*args):
        seen.append(args)
        return convolution(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_convolutions, "convolution", count)
        with AsProducts():
            found = layer(x)
    torch.testing.assert_close(found, layer(x))
    return len(seen)


@pytest.mark.parametrize(
    ("layer", "size", "count"),
    [
        (nn.Conv2d(16, 4, 1), 9, 1),
        (nn.Conv2d(16, 4, 3, padding=1), 2, 1),
        (nn.Conv2d(16, 4, 3, padding=1), 3, 0),  # nine positions
        (nn.Conv2d(16, 4, 1, padding=1), 2, 0),
        (nn.Conv2d(3, 4, 1), 2, 0),
        (nn.Conv2d(32, 4, 1, groups=2), 2, 0),
        (nn.Conv2d(16, 4, 2, dilation=2), 3, 0),
        (nn.Conv2d(16, 4, 3, padding="same"), 2, 0),
    ],
)
def test_only_maps_of_few_positions_become_products(layer, size, count):
    assert products(layer, torch.randn(2, layer.in_channels, size, size)) == count


@pytest.mark.parametrize(
    ("amx", "precision", "used"), [(True, "bf16", True), (True, "fp32", False), (False, "bf16", False)]
)
def test_products_are_used_in_bfloat16_on_processors_with_amx(amx, precision, used, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(small_convolutions, "convolution", lambda *args: seen.append(args) or F.conv2d(*args))
    with computing(torch.device("cpu"), precision):
        nn.Conv2d(16, 4, 1)(torch.randn(1, 16, 2, 2))
    assert bool(seen) == used
