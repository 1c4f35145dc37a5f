import pytest
import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.gates.attach import attach, bake
from crbg.gates.gaussian import Units
from crbg.gates.scores import TopK


def test_bake_without_a_mask_is_what_the_gates_compute():
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))
    x = torch.randn(4, 2, 4, 4)
    attach(conv, lambda n, w: Units(torch.tensor([0.3, 1.0]) if w.shape[1] == 2 else torch.tensor([0.0, 0.6, 1.0])))
    gated = conv(x)
    assert torch.equal(bake(conv)(x), gated)
    top = nn.Sequential(nn.Linear(6, 4))
    attach(top, lambda n, w: TopK(torch.randn_like(w), 5, gain=2.0))
    scaled = top(x.reshape(-1)[:6])
    assert torch.equal(bake(top)(x.reshape(-1)[:6]), scaled)


def test_bake_refuses_a_mask_of_another_shape_and_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4))
    before = model[0].weight.clone()
    with pytest.raises(CrbgError, match="in the mask"):
        bake(model, {"0.weight": torch.ones(4, dtype=torch.bool)})
    assert torch.equal(model[0].weight, before)
