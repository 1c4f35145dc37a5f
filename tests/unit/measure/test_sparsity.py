import pytest
import torch
from networks import randn, random_mask
from torch import nn

from crbg import measure, register_gated
from crbg.gates.attach import weights
from crbg.masks.mask import Mask
from crbg.measure.sparsity import without_weights


def chain():
    """Return the mask of a 3-4-3-2 network: a1 has no input, a2 and b2 have no output, and b0 reads only a1."""
    first = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]])
    second = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    third = torch.tensor([[1, 1, 0], [0, 0, 0]])
    return Mask({"fc1": first.bool(), "fc2": second.bool(), "fc3": third.bool()})


def test_dead_units_and_what_is_alive_by_hand():
    assert measure.dead_units(chain()) == {"fc1": 1, "fc2": 0, "fc3": 1}
    kept = measure.alive(chain())
    assert kept["fc1"].int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert kept["fc2"].int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert kept["fc3"].int().tolist() == [[0, 1, 0], [0, 0, 0]]


def test_dead_channels_of_a_convolution():
    t = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    t[1, 0, 2, 2] = True
    assert measure.dead_units(Mask({"w": t})) == {"w": 2}


def test_alive_follows_chains_of_any_length():
    # A dead unit can make units dead in the next and the previous layer, and so on through the network.
    eye = torch.eye(3, dtype=torch.bool)
    cut = eye.clone()
    cut[1, 1] = False
    for where in range(5):
        mask = Mask({str(i): cut if i == where else eye for i in range(5)})
        assert measure.alive(mask).layer_kept() == dict.fromkeys("01234", 2)


@pytest.mark.parametrize("density", [0.5, 0.02, 0.005])
def test_dropping_what_is_not_alive_changes_no_logit(new_lenet, density):
    model = new_lenet(name="lenet-40-30", scale=0.3).double()
    mask = random_mask(model, density)
    kept, x = measure.alive(mask), randn(50, 1, 28, 28).double()
    assert kept.kept < mask.kept or density == 0.5
    assert kept & mask == kept
    out = [
        torch.func.functional_call(model, {n: w * m[n] for n, w in weights(model).items()}, (x,)) for m in (mask, kept)
    ]
    torch.testing.assert_close(*out, rtol=1e-12, atol=1e-12)
    # Every remaining weight must lie on a path from an input to an output.
    inputs, signal = torch.ones(784), []
    for t in kept.values():
        signal.append(inputs)
        inputs = t.float() @ inputs
    outputs = torch.ones(10)
    for t, s in zip(reversed(list(kept.values())), reversed(signal), strict=True):
        assert bool((t.float() * outputs[:, None] * s[None, :] > 0)[t].all())
        outputs = t.float().T @ outputs


def test_shares_sum_to_one_and_count_by_hand():
    soft = {"a": torch.tensor([0.0, 1.0, 0.5, 0.0]), "b": torch.tensor([[1.0, 1.0]])}
    found = measure.shares(soft)
    assert found["a"] == {"zero": 0.5, "one": 0.25, "fractional": 0.25}
    assert found["b"] == {"zero": 0.0, "one": 1.0, "fractional": 0.0}
    assert found["all"] == pytest.approx({"zero": 2 / 6, "one": 3 / 6, "fractional": 1 / 6})
    drawn = measure.shares({"w": randn(5000).clamp(0, 1)})
    assert all(sum(s.values()) == pytest.approx(1.0) for s in drawn.values())


class Experts(nn.Module):
    """A layer whose weight has three axes: experts, outputs and inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 4))


def test_outputs_are_not_described_if_their_axis_is_unknown():
    register_gated(Experts, ["weight"], axis=2)
    mask = Mask({"0.weight": torch.arange(24).reshape(2, 3, 4) % 4 > 0})
    assert without_weights(nn.Sequential(Experts()), mask) == []
    mask = Mask({"0.weight": torch.zeros(15, 2, dtype=torch.bool).index_fill(0, torch.arange(3), True)})
    zeros = ", ".join(map(str, range(3, 13)))
    assert without_weights(nn.Sequential(nn.Linear(2, 15)), mask) == [
        f"no weight for 12 of 15 outputs of 0.weight ({zeros} and 2 more)"
    ]
