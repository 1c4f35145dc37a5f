import os
from pathlib import Path

import pytest
import torch

from crbg import cli, models
from crbg.data import images
from crbg.init import initialise


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def crbg(capsys):
    """Type a command: its exit status, what it printed, and what it complained of."""

    def type_in(*words):
        capsys.readouterr()
        code = cli.main(list(words))
        out = capsys.readouterr()
        return code, out.out, out.err

    return type_in


@pytest.fixture
def new_lenet():
    def build(seed=0, law="uniform", scale=1.0, name="lenet-300-100", **options):
        model = models.build(name, (1, 28, 28), 10, **options)
        initialise(model, law, scale, seed)
        return model

    return build


@pytest.fixture
def lenet(new_lenet):
    return new_lenet()


@pytest.fixture(scope="session")
def digits():
    return images.load("digits")


@pytest.fixture(scope="session")
def mnist():
    folder = os.environ.get("CRBG_DATA")
    if not folder:
        pytest.skip("CRBG_DATA is not set: no real MNIST to test on")
    if not (Path(folder).expanduser() / "mnist.npz").exists():
        pytest.skip("CRBG_DATA holds no mnist.npz")
    return images.load("mnist", folder, download=False)
