import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crbg.gates.coupling import PINNED, shared_units, trace
from crbg.gates.selection import Selection, choosing


class Network(nn.Module):
    """A network with a forward pass given as a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *x):
        return self.function(self, *x)


def units(model, *x):
    model.eval()
    coupling = trace(model, lambda: model(*x))
    return coupling, {name: len(own) for name, own in shared_units(coupling, model).items()}


def conv(a, b, **options):
    return nn.Conv2d(a, b, 3, padding=1, **options)


IMAGES = torch.ones(2, 3, 6, 6)
ROWS = torch.ones(2, 6)


def test_layers_on_a_residual_stream_share_its_units():
    def forward(net, x):
        x = F.relu(net.norm(net.stem(x)))
        for a, b in ((net.a1, net.a2), (net.b1, net.b2)):
            x = F.relu(x + b(F.relu(a(x))))
        return net.head(x.mean((2, 3)))

    parts = {"a1": conv(4, 5), "a2": conv(5, 4), "b1": conv(4, 6), "b2": conv(6, 4)}
    net = Network(forward, stem=conv(3, 4), norm=nn.BatchNorm2d(4), **parts, head=nn.Linear(4, 2))
    coupling, found = units(net, IMAGES)
    assert found == {"a1.weight": 4, "a2.weight": 5, "b1.weight": 4, "b2.weight": 6, "head.weight": 4}
    stream = coupling.columns["head.weight"].tolist()
    assert len(set(stream)) == 4
    for name in ("stem.weight", "a2.weight", "b2.weight"):
        assert coupling.rows[name].tolist() == stream
    for name in ("a1.weight", "b1.weight"):
        assert coupling.columns[name].tolist() == stream
    for name in ("norm.weight", "norm.running_var", "stem.bias", "b2.bias"):
        assert coupling.others[name].tolist() == stream
    assert set(coupling.columns["stem.weight"]) == set(coupling.rows["head.weight"]) == {PINNED}
    assert not {*coupling.rows["a1.weight"]} & {*stream, *coupling.rows["b1.weight"]}


def attention(explicit):
    def forward(net, x):
        q, k, v = net.qkv(x).reshape(*x.shape[:2], 3, 2, 5).permute(2, 0, 3, 1, 4)
        whole = F.scaled_dot_product_attention
        out = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v if explicit else whole(q, k, v)
        return net.proj(out.transpose(1, 2).reshape(*x.shape[:2], 10))

    return Network(forward, qkv=nn.Linear(6, 30), proj=nn.Linear(10, 3))


@pytest.mark.parametrize("explicit", [True, False])
def test_a_unit_of_an_attention_layer_is_a_head(explicit):
    coupling, found = units(attention(explicit), torch.rand(2, 4, 6))
    assert found == {"proj.weight": 2}
    first, second = coupling.columns["proj.weight"].reshape(2, 5)
    assert [set(first), set(second)] == [{first[0]}, {second[0]}]
    assert coupling.rows["qkv.weight"].reshape(3, 2, 5).tolist() == [[[first[0]] * 5, [second[0]] * 5]] * 3


def chain(middle, width=4, after=4):
    """Return a network with an operation between two layers."""
    return Network(lambda net, x: net.b(middle(net, net.a(x))), a=nn.Linear(6, width), b=nn.Linear(after, 2))


@pytest.mark.parametrize(
    "middle",
    [
        lambda net, x: F.prelu(x, torch.ones(1)),
        lambda net, x: F.hardswish(x),
        lambda net, x: (2 * x + 1).tanh(),
        lambda net, x: F.dropout(x, training=False),
        lambda net, x: x[:, None].expand(-1, 3, -1).mean(1),
        lambda net, x: torch.cat(x.split(2, 1), 1),
    ],
)
def test_elementwise_operations_keep_units_apart(middle):
    coupling, found = units(chain(middle), ROWS)
    assert found == {"b.weight": 4}
    assert coupling.columns["b.weight"].tolist() == coupling.rows["a.weight"].tolist()


@pytest.mark.parametrize(
    "middle",
    [
        lambda net, x: F.layer_norm(x, (4,)),
        lambda net, x: x.softmax(1),
        lambda net, x: x / x.norm(dim=1, keepdim=True),
        lambda net, x: x - x.mean(1, keepdim=True),
        lambda net, x: x.cumsum(1),
        lambda net, x: x @ net.extra,
        lambda net, x: x + net.seen[:, :4],
    ],
)
def test_units_that_act_on_each_other_or_in_an_unknown_way_cannot_be_removed(middle):
    net = chain(middle)
    net.extra = nn.Parameter(torch.eye(4))
    net.register_forward_pre_hook(lambda net, args: setattr(net, "seen", args[0]))
    coupling, found = units(net, ROWS)
    assert not found
    assert set(coupling.columns["b.weight"]) == {PINNED}


def test_flattened_channels_stay_units():
    net = nn.Sequential(conv(3, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    coupling, found = units(net, IMAGES)
    assert found == {"3.weight": 4}
    assert coupling.columns["3.weight"].tolist() == [u for u in coupling.rows["0.weight"] for _ in range(9)]


def test_a_depthwise_convolution_passes_units_on_and_other_groups_pin_them():
    net = nn.Sequential(conv(3, 4), conv(4, 4, groups=4), nn.ReLU(), conv(4, 2))
    coupling, found = units(net, IMAGES)
    assert found == {"3.weight": 4}
    ends = [coupling.rows["0.weight"], coupling.rows["1.weight"], coupling.columns["3.weight"]]
    assert [end.tolist() for end in ends] == [ends[0].tolist()] * 3
    assert "1.weight" not in coupling.columns
    assert not units(nn.Sequential(conv(3, 4), conv(4, 4, groups=2)), IMAGES)[1]


def test_squeeze_and_excitation_belongs_to_its_channels_and_a_spatial_factor_does_not():
    def forward(net, x):
        x = net.a(x)
        x = x * net.excite(x.mean((2, 3), keepdim=True)).sigmoid()
        return net.b(x * net.where(x).sigmoid())

    net = Network(forward, a=conv(3, 4), excite=nn.Conv2d(4, 4, 1), where=conv(4, 1), b=conv(4, 2))
    coupling, found = units(net, IMAGES)
    assert found == {"excite.weight": 4, "where.weight": 4, "b.weight": 4}
    assert coupling.rows["excite.weight"].tolist() == coupling.rows["a.weight"].tolist()
    assert coupling.rows["where.weight"].tolist() == [PINNED]


def test_units_behind_a_concatenation_are_read_in_another_order():
    def forward(net, x):
        a = net.a(x)
        return net.c(torch.cat([a, net.b(a)], 1))

    net = Network(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 3), c=nn.Linear(7, 2))
    coupling, found = units(net, ROWS)
    assert not found
    assert coupling.columns["c.weight"].tolist() == [*coupling.rows["a.weight"], *coupling.rows["b.weight"]]


def test_a_reader_outside_the_choice_of_a_search_excludes_its_units():
    net = Network(lambda net, x: net.b(net.a(x)) + net.c(net.a(x)), **{n: nn.Linear(6, 6) for n in "abc"})
    assert set(units(net, ROWS)[1]) == {"b.weight", "c.weight"}
    with choosing(net, Selection("[ab].weight")):
        assert not units(net, ROWS)[1]


def test_a_layer_that_is_used_twice_has_one_set_of_units():
    net = Network(lambda net, x: net.b(net.a(net.b(net.a(x)))), a=nn.Linear(6, 4), b=nn.Linear(4, 6))
    coupling, found = units(net, ROWS)
    assert found == {"b.weight": 4}
    assert set(coupling.columns["a.weight"]) == {PINNED}, "it also reads the input"


def test_no_hook_is_left():
    net = chain(lambda net, x: x)
    units(net, ROWS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
