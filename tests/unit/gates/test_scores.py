import pytest
import torch

from crbg.gates.scores import TopK
from crbg.masks.select import top_k

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("k", [0, 1, 7, 19, 20])
def test_top_k_gate_keeps_exactly_the_k_largest_sizes(k):
    s, w = randn(4, 5), randn(4, 5, seed=1) + 5
    gate = TopK(s, k, gain=1.5)
    for _ in range(3):  # scores change slightly between steps, as in a search
        expected = top_k(gate.score.detach().abs().flatten(), k).reshape(4, 5)
        out = gate(w)
        assert int((out != 0).sum()) == k
        assert torch.equal(out, w * expected * 1.5)
        assert torch.equal(gate.soft(), expected.to(F64))
        with torch.no_grad():
            gate.score += 0.1 * randn(4, 5, seed=9)


def test_top_k_gate_passes_the_gradient_straight_to_every_score():
    s, w, g = randn(4, 5), randn(4, 5, seed=1).requires_grad_(), randn(4, 5, seed=2)
    gate = TopK(s, 6, gain=2.5)
    gate(w).backward(g)
    assert torch.equal(gate.score.grad, g * w.detach() * s.sign() * 2.5)
    assert int((gate.score.grad[gate.kept().logical_not()] != 0).sum()) == 14
    assert torch.equal(w.grad, g * gate.kept() * 2.5)


def test_a_top_k_gate_that_keeps_all_is_dense_times_gain():
    w = randn(3, 3)
    assert torch.equal(TopK(randn(3, 3), 9, gain=3.0)(w), w * 3.0)
    assert torch.equal(TopK(randn(3, 3), 9)(w), w)


def test_tied_top_k_scores_go_by_position():
    assert TopK(torch.tensor([1.0, -2.0, 2.0, -1.0, 1.0]), 3).kept().tolist() == [True, True, True, False, False]
