# %% [markdown]
# # Find a ticket in your own model
#
# This notebook finds a sparse subnetwork of a random convolutional network with batch norm, without training a weight.
# The data are handwritten digits, which need no download. Open this file as a notebook in VS Code, PyCharm or Jupyter
# (jupytext), or run `python examples/find_a_ticket.py`. It takes about 15 seconds on one core.

# %%
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crbg import Ticket, find_ticket
from crbg.masks.controls import shuffle

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
labels = torch.tensor(labels)
train = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True, drop_last=True)


def network() -> nn.Module:
    """Build the same network with the same random weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 10, bias=False),
    )


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on the 397 images that the search did not use."""
    with torch.no_grad():
        return (model.eval()(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()


# %% [markdown]
# ## The search
#
# Every weight gets a gate z = clip(mu + eps, 0, 1) with eps ~ N(0, noise²). Only mu is trained. A controller adjusts a
# penalty so that the share of weights with mu > 1/2, which are kept, reaches the target density. `polish=0.0` selects
# this form, which is that of the thesis; otherwise, `find_ticket` runs a variant with hard gates in the second half of
# the search. Two options differ from the defaults of this form: a learning rate of 0.05 instead of 0.03, and a noise of
# 0.1 instead of 0.5.

# %%
found = find_ticket(network(), train, density=0.2, epochs=20, polish=0.0, lr=0.05, noise=0.1)
print(found.mask)
for name, kept in found.mask.layer_kept().items():
    print(f"  {name:10s} {kept:6d} of {found.mask[name].numel():6d} weights kept")

# %% [markdown]
# ## The ticket
#
# `apply` sets dropped weights to 0 and sets the running statistics of batch norm to those of the sparse network. All
# other weights keep their random values.

# %%
sparse = found.apply(network())
dense = network()
print(f"random network {accuracy(dense):.1%}, ticket {accuracy(sparse):.1%}")
for name, weight in sparse.named_parameters():
    if name in found.mask:
        assert torch.equal(weight, dense.get_parameter(name) * found.mask[name])

# %% [markdown]
# ## A control
#
# A shuffled mask keeps the same number of weights in every layer, but at other positions. Its accuracy should be near
# chance. Otherwise, the accuracy of the ticket would be due to the layer densities, not to the choice of weights. The
# batch norm statistics are computed again for the shuffled network.

# %%
shuffled = network()
for name, kept in shuffle(found.mask, seed=1).items():
    shuffled.get_parameter(name).data *= kept
for module in shuffled.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.momentum = None  # a plain average over all batches
with torch.no_grad():
    for x, _ in train:
        shuffled(x)
print(f"shuffled mask {accuracy(shuffled):.1%}")

# %% [markdown]
# ## Save the ticket
#
# The file contains the mask and digests of the weights that it was found for. `apply` raises an error if a network has
# other weights.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ticket.safetensors"
    found.ticket().save(path)
    again = Ticket.load(path).apply(network())
print(f"from the file {accuracy(again):.1%}")
