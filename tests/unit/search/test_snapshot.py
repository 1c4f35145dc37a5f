import os
import signal
import threading

import pytest
import torch
from torch import nn

from crbg.search import snapshot
from crbg.search.snapshot import unchanged
from crbg.training.interrupts import no_interrupt


class Counts(nn.Module):
    """Counts its forward passes in a buffer, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n = self.n + 1
        return self.layer(x)


def test_the_block_changes_neither_the_model_nor_the_generator():
    model, before = Counts().eval(), torch.get_rng_state()
    with unchanged(model, seed=3):
        first = torch.rand(2)
        model(torch.ones(1, 2))
        model.layer.weight.data += 1
        assert model.n == 1
    assert model.n == 0
    assert torch.equal(torch.get_rng_state(), before)
    with unchanged(model, seed=3):
        assert torch.equal(torch.rand(2), first)


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []

    def work():
        with no_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone():
    done = []

    def work():
        with no_interrupt():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_an_interrupt_while_tensors_are_restored_restores_them_all(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    compare = snapshot.same_bytes

    def interrupted(a, b):
        os.kill(os.getpid(), signal.SIGINT)
        return compare(a, b)

    def work():
        with unchanged(model):
            for t in model.state_dict().values():
                t.add_(1)
            monkeypatch.setattr(snapshot, "same_bytes", interrupted)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
