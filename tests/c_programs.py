"""Small networks as C programs, compiled with all warnings as errors."""

import ctypes
import shutil

import numpy as np
import pytest
import torch
from networks import random_mask
from torch import nn

from crbg import Ticket, bake, initialise
from crbg.export.c import to_c
from crbg.export.c.host import STANDARD, Built, compile_c
from crbg.models.initial_weights import stored_weights, tensor_digest

FLAGS = ("-O1", "-Werror")
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


def repeated(activation):
    """Return a network in which one activation occurs twice."""
    return nn.Sequential(nn.Linear(7, 9), activation, nn.Linear(9, 8), activation, nn.Linear(8, 3))


NETWORKS = {  # the network, and the shape of an input
    "one activation twice": (lambda: repeated(nn.LeakyReLU(0.2)), (7,)),
    "linear": (lambda: nn.Sequential(nn.Linear(9, 4, bias=False)), (9,)),
    "activations": (
        lambda: nn.Sequential(
            nn.Flatten(),
            *(nn.ReLU(), nn.Linear(12, 30), nn.BatchNorm1d(30), nn.PReLU(30, init=0.3), nn.Dropout(0.5)),
            *(nn.Linear(30, 20), nn.LeakyReLU(0.1), nn.BatchNorm1d(20), nn.Linear(20, 17), nn.PReLU(), nn.Identity()),
            *(nn.Linear(17, 5), nn.ReLU(), nn.BatchNorm1d(5)),
        ),
        (3, 2, 2),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU()),
            *(nn.Conv2d(6, 4, (1, 3), padding=(0, 2), dilation=2, groups=2), nn.PReLU(4), nn.MaxPool2d(3, 2, 1)),
            *(nn.Conv2d(4, 8, 3, padding="same", bias=False), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten()),
            *(nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 6)),
        ),
        (2, 11, 9),
    ),
    "pools": (
        lambda: nn.Sequential(
            *(nn.AvgPool2d(2, stride=1, padding=1), nn.Conv2d(1, 4, 3), nn.AvgPool2d(2, 2, 1, count_include_pad=False)),
            *(nn.MaxPool2d(2, stride=1), nn.AvgPool2d((1, 2), divisor_override=3, ceil_mode=True)),
            *(nn.AdaptiveAvgPool2d((2, 1)), nn.Conv2d(4, 4, 1)),
        ),
        (1, 10, 9),
    ),
}


def made(kind, density=0.4, seed=0):
    """Return a pruned network with all parameters and running statistics drawn at random, and some inputs."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[kind]
    model = make()
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.data = torch.rand_like(tensor) + 0.5 if tensor.min() > 0 else torch.randn_like(tensor)
    return bake(model, random_mask(model, density, seed)).eval(), torch.randn(37, *shape)


def drawn(model, law, seed=3, scale=0.35, density=0.3, gain=None):
    """Return a ticket of a network whose weights follow from a seed, with the running statistics of the network."""
    running = {n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()}
    initialise(model, law, scale, seed)
    digest = tensor_digest(stored_weights(model))
    return Ticket(random_mask(model, density), seed, law, scale, "", (), 0, digest, {}, running, gain=gain or {})


def outputs(model, inputs):
    with torch.no_grad():
        return model.eval()(inputs).flatten(1).numpy()


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def build(folder, source, draw="stored", **options):
    to_c(source, folder, draw, **options)
    return Built(folder, flags=FLAGS)


def functions_of(folder, code):
    """Compile C code and load it."""
    (folder / "code.c").write_text(code)
    compile_c([folder / "code.c"], folder / "code.so", [*STANDARD, *FLAGS, "-shared", "-fPIC"])
    return ctypes.CDLL(str(folder / "code.so"))
