"""Which layer types carry gates, and where the inputs of a layer lie in its weight."""

import copy

import pytest
import torch
from simple_gates import Counting, half_open
from torch import nn

from crbg import find_ticket, register_gated
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, bake, detach, sampling, weights
from crbg.gates.base import Fixed
from crbg.gates.gaussian import Units
from crbg.gates.layers import fan_in


class Conv1D(nn.Module):
    """The linear layer of transformers' GPT-2; its weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class GraphLinear(nn.Module):
    """The linear layer of torch_geometric, which is not an `nn.Linear`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


GraphLinear.__name__, GraphLinear.__module__ = "Linear", "torch_geometric.nn.dense.linear"


class Mean(nn.Module):
    """A recurrent layer that returns the mean of its outputs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0].mean(1)


class Loop(nn.Module):
    """A cell in a loop over time."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


RECURRENT = {
    "rnn": lambda: Mean(nn.RNN(3, 4, batch_first=True)),
    "gru": lambda: Mean(nn.GRU(3, 4, num_layers=2, batch_first=True, dropout=0.1)),
    "lstm": lambda: Mean(nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)),
    "projection": lambda: Mean(nn.LSTM(3, 4, proj_size=2, bidirectional=True, bias=False, batch_first=True)),
    "rnn cell": lambda: Loop(nn.RNNCell(3, 4)),
    "gru cell": lambda: Loop(nn.GRUCell(3, 4)),
    "lstm cell": lambda: Loop(nn.LSTMCell(3, 4)),
}
X = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=RECURRENT)
def recurrent(request):
    torch.manual_seed(0)
    return RECURRENT[request.param]().eval()


def matrices(model):
    return {n: p for n, p in model.named_parameters() if p.ndim > 1}


def test_every_matrix_of_a_recurrent_layer_is_gated_once_in_a_pass(recurrent):
    names = list(matrices(recurrent))
    assert list(weights(recurrent)) == names
    attach(recurrent, lambda n, w: Counting())
    for passes in (1, 2):
        recurrent(X)
        assert {g.count for g in attached_gates(recurrent).values()} == {passes}


def test_a_gated_recurrent_layer_computes_with_the_gated_weights(recurrent):
    torch.manual_seed(1)
    mask = {n: torch.rand_like(w) < 0.5 for n, w in weights(recurrent).items()}
    twin = copy.deepcopy(recurrent)
    with torch.no_grad():
        for n, w in matrices(twin).items():
            w.mul_(mask[n])
    expected = twin(X)
    assert not torch.equal(recurrent(X), expected)
    attach(recurrent, lambda n, w: Fixed(mask[n]))
    assert torch.equal(recurrent(X), expected)
    assert torch.equal(bake(recurrent, mask)(X), expected)


def test_gates_of_a_recurrent_layer_get_their_gradient(recurrent):
    attach(recurrent.train(), half_open)
    with sampling(recurrent):
        recurrent(X).square().sum().backward()
    assert all(bool((g.mu.grad != 0).any()) for g in attached_gates(recurrent).values())


def test_a_gated_recurrent_layer_can_be_copied_and_converted(recurrent):
    attach(recurrent, lambda n, w: Fixed(torch.full_like(w, 0.5)))
    expected = recurrent(X)
    other = copy.deepcopy(recurrent).double().float()
    assert torch.equal(other(X), expected)
    for gate in attached_gates(other).values():
        gate.values.fill_(1.0)
    assert not torch.equal(other(X), expected)
    assert torch.equal(recurrent(X), expected), "the copy has gates of its own"


def test_a_recurrent_layer_is_as_before_after_its_gates_are_removed(recurrent):
    plain, before = recurrent(X), {n: id(p) for n, p in recurrent.named_parameters()}
    kinds, keys = [type(m) for m in recurrent.modules()], list(recurrent.state_dict())
    attach(recurrent, half_open)
    with sampling(recurrent):
        recurrent(X)
    detach(recurrent)
    assert [type(m) for m in recurrent.modules()] == kinds
    assert list(recurrent.state_dict()) == keys
    assert {n: id(p) for n, p in recurrent.named_parameters()} == before
    assert torch.equal(recurrent(X), plain)
    assert torch.equal(copy.deepcopy(recurrent)(X), plain)
    for m in recurrent.modules():
        if isinstance(m, nn.RNNBase):
            assert [id(w) for w in m._flat_weights] == [id(p) for p in m.parameters()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with cuDNN")
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "projection"])
def test_cudnn_computes_with_the_gated_weights(kind):
    torch.manual_seed(0)
    model = RECURRENT[kind]().eval()
    mask = {n: torch.rand_like(w) < 0.5 for n, w in weights(model).items()}
    expected = bake(copy.deepcopy(model), mask)(X)
    model = attach(model, lambda n, w: Fixed(mask[n])).cuda()
    torch.testing.assert_close(model(X.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)
    detach(model)
    torch.testing.assert_close(bake(model, mask)(X.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_a_ticket_is_found_in_a_recurrent_network():
    torch.manual_seed(0)
    model = nn.Sequential(RECURRENT["lstm"](), nn.Linear(8, 2))
    found = find_ticket(model, (X.repeat(4, 1, 1), torch.arange(20) % 2), 0.5, epochs=2, batch=10)
    assert set(found.mask) == {n for n, p in model.named_parameters() if p.ndim > 1}
    assert found.mask.kept == pytest.approx(0.5 * found.mask.total, rel=0.02)


# layers of other packages, and of the user ----------------------------------------------------------------------------


def test_linear_layers_of_other_packages_are_gated_without_importing_them():
    assert list(weights(nn.Sequential(Conv1D(4, 3), GraphLinear(4, 2)))) == ["0.weight", "1.weight"]
    plain = type("Conv1D", (nn.Linear,), {})(2, 2)
    assert list(weights(nn.Sequential(plain))) == ["0.weight"], "a subclass of a known layer"


def test_the_number_of_inputs_depends_on_the_orientation():
    model = nn.Sequential(Conv1D(5, 3), nn.Linear(3, 5), nn.ConvTranspose2d(4, 6, 3, groups=2))
    assert [fan_in(model, n, w) for n, w in weights(model).items()] == [3, 3, 2 * 9]


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))


def test_a_layer_type_of_ones_own_can_be_registered():
    class Child(Own):
        pass

    class Off(nn.Linear):
        pass

    model = nn.Sequential(Own(), Child(), Off(2, 2))
    assert list(weights(model)) == ["2.weight"]
    register_gated(Own, ["left"], axis=0)
    register_gated(Child, lambda layer: ["left", "right"])
    register_gated(Off, [])
    assert list(weights(model)) == ["0.left", "1.left", "1.right"]
    with pytest.raises(CrbgError, match=r"must be a list of names; write \['left'\]"):
        register_gated(Own, "left")
    with pytest.raises(CrbgError, match=r"needs a subclass of nn\.Module"):
        register_gated(Own(), ["left"])


# unit gates -----------------------------------------------------------------------------------------------------------

IMAGES = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
WITH_UNITS = {
    "conv": (lambda: nn.Conv2d(8, 6, 3), IMAGES),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), IMAGES),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8), IMAGES),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3), IMAGES),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(8, 6, 3, groups=2), IMAGES),
    "1d": (lambda: nn.Conv1d(8, 6, 3, groups=2), IMAGES[..., 0]),
    "linear": (lambda: nn.Linear(8, 5), IMAGES[:, :, 0, 0]),
    "Conv1D": (lambda: Conv1D(5, 8), IMAGES[:, :, 0, 0]),
}


@pytest.mark.parametrize("kind", WITH_UNITS)
def test_gating_the_inputs_of_a_layer_is_multiplying_the_inputs(kind):
    torch.manual_seed(0)
    make, x = WITH_UNITS[kind]
    model, z = nn.Sequential(make()), torch.rand(8)
    expected = model(x * z.reshape(1, 8, *[1] * (x.ndim - 2)))
    attach(model, lambda n, w: Units(z))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("kind", ["grouped", "depthwise", "transposed"])
def test_unit_tickets_keep_or_drop_whole_inputs(kind):
    torch.manual_seed(0)
    middle = WITH_UNITS[kind][0]()
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), middle, nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(20, 1, 4, 4)
    model(x)
    found = find_ticket(model, (x, torch.arange(20) % 2), 0.5, granularity="unit", epochs=4, batch=10, lr=0.3)
    mask = found.mask["2.weight"]
    assert found.anatomy["units"]["2.weight"]["total"] == 8
    assert found.exact
    with torch.no_grad():
        middle.weight.fill_(1.0)
        middle.bias.zero_()
        bake(model, {"2.weight": mask})
        one_by_one = torch.eye(8).reshape(8, 8, 1, 1).expand(8, 8, 4, 4)
        out = middle(one_by_one).flatten(1).sum(1)
    assert set((out / out.max()).tolist()) == {0.0, 1.0}


def test_unit_gates_are_refused_on_a_bias_and_its_units_have_no_inputs():
    model = nn.Sequential(nn.Linear(4, 3), nn.ConvTranspose2d(4, 3, 1))
    for name in ("0.bias", "1.bias"):
        with pytest.raises(CrbgError, match="unit gates need a weight with one axis of input units"):
            attach(model, lambda n, w: Units(torch.ones(4)), name)
        assert fan_in(model, name, model.get_parameter(name)) == 1
    assert not attached_gates(model)


@pytest.mark.parametrize("layer", [lambda: nn.Bilinear(4, 4, 2), lambda: nn.LSTM(4, 4)], ids=["bilinear", "lstm"])
def test_unit_gates_are_refused_where_a_layer_has_no_axis_of_inputs(layer):
    model = nn.Sequential(layer())
    with pytest.raises(
        CrbgError, match=r"unit gates need a weight with one axis of input units, and '0\.weight.* none"
    ):
        attach(model, lambda n, w: Units(torch.ones(4)))
    assert not attached_gates(model)


def test_shared_unit_gates_on_different_axes_are_refused():
    unit = Units(torch.ones(4))
    with pytest.raises(CrbgError, match="inputs on different axes"):
        attach(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1)), lambda n, w: unit)
