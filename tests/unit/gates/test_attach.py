import copy

import pytest
import timm
import torch
import torchvision
from simple_gates import Counting
from torch import nn
from torch.nn.utils import parametrize

from crbg import models
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, bake, bypass, detach, frozen, sampling, weights
from crbg.gates.base import Fixed
from crbg.gates.gaussian import Gaussian, Units
from crbg.masks.mask import Mask
from crbg.models.initial_weights import initialise, tensor_digest

VIT = {"img_size": 32, "patch_size": 8, "depth": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "depths": (1, 1), "embed_dim": 32, "num_heads": (2, 4)}
NETWORKS = {
    "lenet": lambda: models.build("lenet-300-100", (1, 28, 28), 10),
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, **VIT),
    "swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **SWIN),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=10),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "torchvision_vit": lambda: torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def original(request):
    """Return an initialised network of each kind with a batch of images; tests use copies."""
    model = NETWORKS[request.param]()
    initialise(model, "kaiming_normal", 1.0, 0)
    shape = (1, 28, 28) if request.param == "lenet" else (3, 32, 32)
    return model, torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(original):
    return copy.deepcopy(original[0]), original[1]


def some_mask(model, density=0.6):
    g = torch.Generator().manual_seed(1)
    return Mask({n: torch.rand(w.shape, generator=g) < density for n, w in weights(model).items()})


def gaussian(name, w):
    g = torch.Generator().manual_seed(w.numel())
    return Gaussian(0.5 + 0.5 * torch.randn(w.shape, generator=g))


def layout(model):
    """Return the class of every module, and the names of the parameters and of the state_dict in their order."""
    return [type(m) for m in model.modules()], [n for n, _ in model.named_parameters()], list(model.state_dict())


def hooks(model):
    return len(model._forward_pre_hooks) + len(model._forward_hooks) + len(model._forward_hooks_always_called)


# every network ------------------------------------------------------------------------------------------------------


def test_gates_attach_to_every_weight(network):
    model, _ = network
    names = weights(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    assert len(names) == len(layers) + len(attention)
    assert attach(model, lambda n, w: Counting()) is model
    assert list(attached_gates(model)) == list(names)
    assert all(weights(model)[n] is w for n, w in names.items())


def test_each_gate_is_evaluated_once_in_a_forward_pass(network):
    model, x = network
    attach(model, lambda n, w: Counting())
    passes = 0
    for train in (True, False):
        model.train(train)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                model(x)
            passes += 1
            assert {g.count for g in attached_gates(model).values()} == {passes}, (train, grad)


def test_baking_a_mask_is_the_model_with_fixed_gates_to_the_bit(network):
    model, x = network
    before, mask = layout(model), some_mask(model)
    twin = copy.deepcopy(model).eval()
    initial = tensor_digest(model.state_dict())
    attach(twin, lambda n, w: Fixed(mask[n]))
    attach(model, lambda n, w: Counting())
    assert layout(model) != before
    bake(model, mask).eval()
    assert layout(model) == before
    assert not attached_gates(model)
    assert hooks(model) == 0
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
    for name, w in weights(model).items():
        assert bool((w[~mask[name]] == 0).all())
    assert tensor_digest(model.state_dict()) != initial


def test_a_step_moves_the_gates_and_nothing_else(network):
    model, x = network
    attach(model, gaussian)
    found = attached_gates(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.SGD([g.mu for g in found.values()], lr=0.1)
    torch.manual_seed(0)
    with sampling(model):
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    optimiser.step()
    moved = {
        n
        for n, p in model.named_parameters()
        if not torch.equal(p.detach().view(torch.uint8), before[n].view(torch.uint8))
    }
    assert moved == {n for n, p in model.named_parameters() if any(p is g.mu for g in found.values())}
    assert len(moved) == len(found)


def test_no_branch_is_dead_after_initialise(network):
    model, x = network
    model.train()
    out = model(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    dead = [n for n, w in weights(model).items() if not bool((w.grad != 0).any())]
    assert dead == []


def test_bypass_is_the_dense_model_and_draws_nothing(network):
    model, x = network
    model.eval()
    with torch.no_grad():
        dense = model(x)
        attach(model, gaussian)
        before = torch.get_rng_state()
        with sampling(model), bypass(model):
            assert torch.equal(model(x), dense)
        assert torch.equal(before, torch.get_rng_state())
        assert not torch.equal(model(x), dense)


def test_detach_gives_back_bytes_classes_and_hooks(network):
    model, x = network
    before, digest = layout(model), tensor_digest(model.state_dict())
    attach(model, gaussian).eval()
    with sampling(model):
        model(x)
    assert detach(model) is model
    assert layout(model) == before
    assert hooks(model) == 0
    assert all(isinstance(w, nn.Parameter) for w in weights(model).values())
    assert tensor_digest(model.state_dict()) == digest


# one network --------------------------------------------------------------------------------------------------------


def attention():
    model = NETWORKS["torchvision_vit"]()
    initialise(model, "kaiming_normal", 1.0, 0)
    return model.eval()


def test_a_second_gate_is_refused(lenet):
    attach(lenet, gaussian, "fc1.weight")
    with pytest.raises(CrbgError, match=r"'fc1.weight' already has a gate"):
        attach(lenet, gaussian)
    assert list(attached_gates(lenet)) == ["fc1.weight"]
    attach(lenet, gaussian, "fc[23].weight")
    assert list(attached_gates(lenet)) == ["fc1.weight", "fc2.weight", "fc3.weight"]


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(CrbgError, match=r"'2.weight' and '0.weight' share one weight"):
        attach(model, gaussian)
    assert not parametrize.is_parametrized(model[0])


def test_a_table_tied_to_a_layer_is_refused():
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 7, bias=False)})
    assert list(weights(model)) == ["body.weight", "head.weight"]
    model["head"].weight = model["table"].weight
    with pytest.raises(CrbgError, match=r"'head.weight' and 'table.weight' share one weight"):
        attach(model, gaussian)


def test_a_module_used_twice_is_one_weight():
    block = nn.Linear(4, 4)
    assert list(weights(nn.Sequential(block, nn.ReLU(), block))) == ["0.weight"]


def test_no_match_is_refused_with_the_nearest_name(lenet):
    with pytest.raises(CrbgError, match=r"no weight matches 'fc1.weigth': did you mean 'fc1.weight'"):
        attach(lenet, gaussian, "fc1.weigth")
    with pytest.raises(CrbgError, match="no weight matches"):
        attach(lenet, gaussian, "fc")  # a pattern must match the full name
    with pytest.raises(CrbgError, match="no weight that can be gated"):
        attach(nn.Sequential(nn.ReLU()), gaussian)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (r"fc[12]\.weight", ["fc1.weight", "fc2.weight"]),
        ("fc3.*", ["fc3.weight"]),
        (r"(?!fc1).*", ["fc2.weight", "fc3.weight"]),
    ],
)
def test_where_selects_by_name(lenet, where, names):
    assert list(attached_gates(attach(lenet, gaussian, where))) == names


def test_make_may_leave_a_weight_dense(lenet):
    attach(lenet, lambda n, w: None if n == "fc2.weight" else gaussian(n, w))
    assert list(attached_gates(lenet)) == ["fc1.weight", "fc3.weight"]
    assert not parametrize.is_parametrized(lenet.fc2)


def test_norms_biases_and_embeddings_carry_no_gate():
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(), nn.Bilinear(4, 4, 2), nn.BatchNorm1d(4)
    )
    assert list(weights(model)) == ["1.weight", "4.weight"]
    assert list(weights(nn.Linear(2, 2))) == ["weight"]
    assert list(weights(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))) == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ]


@pytest.mark.parametrize("take_off", [detach, bake])
@pytest.mark.parametrize("kind", ["lenet", "torchvision_vit"])
def test_taking_the_gates_off_one_copy_leaves_the_other(kind, take_off):
    model = NETWORKS[kind]()
    initialise(model, "kaiming_normal", 1.0, 0)
    attach(model.eval(), gaussian)
    x = torch.randn(2, *((1, 28, 28) if kind == "lenet" else (3, 32, 32)), generator=torch.Generator().manual_seed(0))
    for order in (1, -1):  # 1: remove the gates of the original; -1: of the copy
        source = copy.deepcopy(model)
        off, on = (source, copy.deepcopy(source))[::order]
        with torch.no_grad():
            expected = on(x)
            take_off(off)
            assert not attached_gates(off)
            off(x)
            assert torch.equal(on(x), expected)
        assert list(attached_gates(on)) == list(weights(on))
        with sampling(on):
            on(x).sum().backward()
        assert all(g.mu.grad is not None for g in attached_gates(on).values())


def test_a_copy_has_gates_of_its_own(lenet):
    attach(lenet, gaussian)
    other = copy.deepcopy(lenet)
    with torch.no_grad():
        attached_gates(other)["fc1.weight"].mu.fill_(9.0)
    assert not bool((attached_gates(lenet)["fc1.weight"].mu == 9).any())


def test_attention_draws_each_gate_once_in_a_pass():
    model = attach(attention(), gaussian)
    with sampling(model), torch.no_grad():
        torch.manual_seed(0)
        model(torch.randn(1, 3, 32, 32))
        after = torch.get_rng_state()
        torch.manual_seed(0)
        torch.randn(1, 3, 32, 32)
        for w in weights(model).values():
            torch.randn_like(w)
    assert torch.equal(after, torch.get_rng_state())


class Refuses(nn.Module):
    def forward(self, x):
        raise RuntimeError("no")


@pytest.mark.parametrize("where", ["inside", "gate"])
def test_an_exception_in_a_forward_pass_leaves_no_cache_open(where):
    model, x = attention(), torch.zeros(1, 3, 32, 32)
    attach(model, lambda n, w: Counting())
    if where == "inside":
        inner, model.heads = model.heads, Refuses()
    else:
        last = list(attached_gates(model).values())[-1]
        last.effective = Refuses().forward
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            model(x)
        assert parametrize._cache_enabled == 0
        assert not parametrize._cache
    if where == "inside":
        model.heads = inner
    else:
        del last.effective
    model(x)
    assert parametrize._cache_enabled == 0


def test_a_shared_unit_gate_forgets_its_draw_after_an_exception():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Refuses())
    unit = Units(torch.full((4,), 0.5))
    attach(net, lambda n, w: unit)
    with pytest.raises(RuntimeError), sampling(net):
        net(torch.ones(1, 4))
    assert not unit.scope.values
    assert not unit.scope.depth


def test_flags_hold_within_their_block_and_come_back_after_an_exception(lenet):
    attach(lenet, gaussian)
    first, *others = attached_gates(lenet).values()
    first.sampling = True

    def interrupted():
        with sampling(lenet), bypass(lenet):
            assert all(g.sampling and g.bypassed for g in attached_gates(lenet).values())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert first.sampling
    assert not any(g.sampling for g in others)
    assert not any(g.bypassed for g in attached_gates(lenet).values())
    with sampling(lenet, False):
        assert not first.sampling


def test_frozen_weights_get_no_gradient_and_gates_do(lenet):
    lenet.fc3.weight.requires_grad_(False)

    def interrupted():
        with frozen(lenet):
            attach(lenet, gaussian)
            lenet(torch.ones(1, 1, 28, 28)).sum().backward()
            assert all(w.grad is None for w in weights(lenet).values())
            assert all(g.mu.grad is not None for g in attached_gates(lenet).values())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [w.requires_grad for w in weights(lenet).values()] == [True, True, False]


def test_baking_without_a_mask_writes_the_noise_free_gates(lenet):
    raw = {n: w.detach().clone() for n, w in weights(lenet).items()}
    attach(lenet, gaussian)
    mu = {n: g.mu.detach() for n, g in attached_gates(lenet).items()}
    with sampling(lenet):
        bake(lenet)
    for name, w in weights(lenet).items():
        assert torch.equal(w, raw[name] * mu[name].clamp(0, 1))


def test_baking_a_dense_model_takes_a_mask_of_some_of_its_weights(lenet):
    raw = {n: w.detach().clone() for n, w in weights(lenet).items()}
    mask = Mask({"fc2.weight": torch.rand(100, 300) < 0.5})
    bake(lenet, mask)
    assert torch.equal(lenet.fc2.weight, raw["fc2.weight"] * mask["fc2.weight"])
    assert torch.equal(lenet.fc1.weight, raw["fc1.weight"])


def test_baking_an_unknown_weight_is_refused(lenet):
    with pytest.raises(CrbgError, match=r"the model has no weight 'fc9.weight': did you mean"):
        bake(lenet, {"fc9.weight": torch.ones(10, 100)})
