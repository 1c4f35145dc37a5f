import pytest
import torch

from crbg.gates.base import Fixed, Gate


def test_fixed_multiplies_by_booleans_and_by_numbers():
    w = torch.tensor([2.0, -3.0, 4.0])
    assert Fixed(torch.tensor([True, False, True]))(w).tolist() == [2.0, 0.0, 4.0]
    assert Fixed(torch.tensor([0.5, 1.0, 0.0]))(w).tolist() == [1.0, -3.0, 0.0]
    assert not list(Fixed(w).parameters())
    assert Fixed(torch.tensor([True, False])).scores().tolist() == [1.0, 0.0]


def test_the_base_gate_computes_nothing():
    for call in (lambda: Gate()(torch.ones(1)), Gate().scores, Gate().soft):
        with pytest.raises(NotImplementedError):
            call()
