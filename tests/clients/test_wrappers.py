"""Models inside `torch.compile`, DataParallel and a Lightning module, and the networks inside them."""

import pytest
import torch
from networks import Tiny, randn, tiny
from torch import nn
from torch.nn import functional as F

BATCHES = [(x, torch.arange(8) % 3) for x in randn(2, 8, 1, 6, 6)]


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrapped_models_keep_their_wrapper(wrap, search_as_a_client):
    wrapped = wrap(tiny())
    keys = list(wrapped.state_dict())
    found = search_as_a_client(wrapped, BATCHES)
    assert list(found.mask) == ["conv.weight", "head.weight"]
    assert list(wrapped.state_dict()) == keys
    x = BATCHES[0][0]
    with torch.no_grad():
        got, expected = wrapped.eval()(x), found.apply(tiny()).eval()(x)
    assert torch.equal(got, expected), "the wrapper runs the sparse network"


def lit(base):
    """Return a module in the style of Lightning: it holds the network and defines the step."""

    class Lit(base):
        def __init__(self):
            super().__init__()
            self.net = Tiny()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            return F.cross_entropy(self(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    return Lit()


def base(name):
    return nn.Module if name == "plain" else pytest.importorskip("lightning").LightningModule


MODULES = ["plain", pytest.param("lightning", marks=pytest.mark.clients)]


@pytest.mark.parametrize("name", MODULES)
def test_network_inside_a_lightning_module(name, search_as_a_client):
    module = lit(base(name))
    found = search_as_a_client(module.net, BATCHES)
    assert list(found.mask) == ["conv.weight", "head.weight"]
    assert float((module.net.head.weight == 0).float().mean()) > 0.2
    module.training_step(BATCHES[0], 0).backward()
    assert module.net.head.weight.grad is not None


@pytest.mark.parametrize("name", MODULES)
def test_lightning_module_with_its_own_training_step(name, search_as_a_client):
    module = lit(base(name))

    def step(module, batch):
        return module.training_step(batch, 0)

    assert list(search_as_a_client(module, BATCHES, forward=step).mask) == ["net.conv.weight", "net.head.weight"]
