"""Tickets for the tests of `crbg.export`."""

from dataclasses import replace

import torch
from networks import random_mask

from crbg import Mask, Ticket, models, weights
from crbg.export import Examples
from crbg.models.initial_weights import initialise, tensor_digest


def small_ticket(density):
    """Return a ticket of a small network with a random mask of the given density."""
    model = models.build("lenet-20-10", (1, 6, 6), 3)
    initialise(model, "uniform", 1.0, 7)
    initial = tensor_digest(model.state_dict())
    return Ticket(random_mask(model, density), 7, "uniform", 1.0, "lenet-20-10", (1, 6, 6), 3, initial)


def noise():
    """Return examples for `small_ticket`."""
    x = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return Examples("noise", x, torch.arange(30) % 3)


def closed_ticket(law="uniform", dead=True):
    """Return a ticket of a small network in which every second hidden unit is closed."""
    model = models.build("lenet-8-6", (1, 4, 4), 3)
    initialise(model, "uniform", 1.0, 7)
    found = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items() if n != "fc1.weight"}
    for t in found.values():
        t[:, ::2] = not dead
    initial = tensor_digest(model.state_dict())
    return replace(Ticket(Mask(found), 7, "uniform", 1.0, "lenet-8-6", (1, 4, 4), 3, initial), law=law)
