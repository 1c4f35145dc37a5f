"""Tickets for the tests of `crbg.export`."""

from dataclasses import replace

import torch

from crbg import Mask, Ticket, models, weights
from crbg.models.initial_weights import initialise, tensor_digest


def closed_ticket(law="uniform", dead=True):
    """Return a ticket of a small network in which every second hidden unit is closed."""
    model = models.build("lenet-8-6", (1, 4, 4), 3)
    initialise(model, "uniform", 1.0, 7)
    found = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items() if n != "fc1.weight"}
    for t in found.values():
        t[:, ::2] = not dead
    initial = tensor_digest(model.state_dict())
    return replace(Ticket(Mask(found), 7, "uniform", 1.0, "lenet-8-6", (1, 4, 4), 3, initial), law=law)
