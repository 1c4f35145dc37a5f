import math

import pytest
import torch

from crbg.errors import CrbgError
from crbg.search.penalties import BLOCK, PENALTIES, penalty, slope_into

F64 = torch.float64
MIXTURE = "1.5*induce_sparse + -0.25*induce_decision+decision_entropy"
MU = torch.linspace(-1.53, 2.51, 97, dtype=F64)  # avoids 0 and 1, where `decision_quad` is not differentiable


# penalties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 0.2])
@pytest.mark.parametrize("name", [*PENALTIES, MIXTURE])
def test_every_slope_is_the_derivative_of_its_value(name, sigma):
    p, h, mu = penalty(name), 1e-5, MU.clone()
    central = (p.value(mu + h, sigma) - p.value(mu - h, sigma)) / (2 * h)
    torch.testing.assert_close(p.slope(mu, sigma), central, rtol=1e-6, atol=1e-9)
    assert torch.equal(mu, MU)  # slopes are computed in place, but mu is not overwritten
    assert p.slope(mu, sigma).abs().max() > 0.1


@pytest.mark.parametrize("name", PENALTIES)
def test_slopes_stay_finite_far_out(name):
    assert bool(penalty(name).slope(torch.tensor([-40.0, -5.0, 0.0, 1.0, 5.0, 40.0]), 0.5).isfinite().all())


@pytest.mark.parametrize(
    ("mu", "sigma"), [(-0.6, 0.5), (0.0, 0.5), (0.5, 0.5), (1.2, 0.5), (-0.3, 0.25), (0.3, 0.25), (0.7, 0.25)]
)
def test_penalties_are_the_shares_that_a_draw_shows(mu, sigma):
    n = 200_000
    z = (mu + sigma * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=F64)).clamp(0, 1)
    shares = {"induce_sparse": z > 0, "induce_decision": (z > 0) & (z < 1)}
    for name, hits in shares.items():
        p = penalty(name).value(torch.tensor([mu], dtype=F64), sigma).item()
        assert abs(hits.double().mean().item() - p) < 3 * math.sqrt(p * (1 - p) / n), name


def test_quad_and_entropy_against_their_formulas():
    p = torch.special.ndtr(MU / 0.5)
    entropy = -p * p.log() - (1 - p) * (1 - p).log()
    torch.testing.assert_close(penalty("decision_entropy").value(MU, 0.5), entropy, rtol=1e-9, atol=1e-12)
    inside = (MU > 0) & (MU < 1)
    torch.testing.assert_close(penalty("decision_quad").value(MU, 0.5), torch.where(inside, MU * (1 - MU), 0.0))
    corners = penalty("decision_quad").slope(torch.tensor([0.0, 1.0]), 0.5)
    assert corners.tolist() == [0.0, 0.0]


def test_a_mixture_is_the_sum_of_its_terms():
    parts = {"induce_sparse": 1.5, "induce_decision": -0.25, "decision_entropy": 1.0}
    for side in ("value", "slope"):
        total = sum(w * getattr(penalty(n), side)(MU, 0.3) for n, w in parts.items())
        torch.testing.assert_close(getattr(penalty(MIXTURE), side)(MU, 0.3), total)
    assert torch.equal(penalty("2*induce_sparse").value(MU, 0.3), 2 * penalty("induce_sparse").value(MU, 0.3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("induce_sparce", "did you mean 'induce_sparse'"),
        ("0.5*induce_sparse+induce_decisions", "unknown penalty 'induce_decisions'"),
        ("x*induce_sparse", "is not of the form"),
        ("induce_sparse+", "unknown penalty ''"),
        ("", "unknown penalty ''"),
    ],
)
def test_bad_penalty_names_are_refused(name, message):
    with pytest.raises(CrbgError, match=message):
        penalty(name)


@pytest.mark.parametrize(
    "name", ["induce_sparse", "induce_decision", "decision_quad", "0.5*decision_entropy+induce_sparse"]
)
def test_slopes_block_by_block_have_the_bits_of_one_call(name):
    p = penalty(name)
    flat = torch.linspace(-2, 3, 2 * BLOCK + 40)
    last = torch.randn(64, 96, 7, 7).to(memory_format=torch.channels_last)
    assert last.numel() > 2 * BLOCK
    for mu in (flat, last, flat[::2]):
        expected = p.slope(mu, 0.5)
        assert torch.equal(slope_into(None, p, mu, 0.5), expected)
        out = torch.empty_like(mu)
        written = slope_into(out, p, mu, 0.5)
        assert torch.equal(written, expected)
        assert written.stride() == mu.stride() or not mu.is_contiguous()
    out = torch.empty_like(last)
    assert slope_into(out, p, last, 0.5) is out
    out = torch.empty(last.shape)  # its memory layout differs from that of `last`
    assert slope_into(out, p, last, 0.5) is not out
