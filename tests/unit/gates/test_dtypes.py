"""Models in half precision and in float64, and devices without float64."""

import pytest
import torch
from torch import nn

from crbg import find_ticket
from crbg.gates import dtypes, kernels
from crbg.gates.attach import attach, attached_gates, sampling
from crbg.gates.concrete import Clipped, Concrete, HardConcrete
from crbg.gates.gaussian import Gaussian, Units
from crbg.gates.scores import Rounded, Sampled, TopK
from crbg.training.checkpoint import TrainingState
from crbg.training.hooks import SearchHook

GATES = {
    "normal": lambda w: Gaussian(torch.full_like(w, 0.5)),
    "counter": lambda w: Gaussian(torch.full_like(w, 0.5), source="counter"),
    "antithetic": lambda w: Gaussian(torch.full_like(w, 0.5), source="antithetic", leak=0.5),
    "sigma": lambda w: Gaussian(torch.full_like(w, 0.5), learn_sigma=True),
    "units": lambda w: Units(torch.full_like(w[0], 0.5)),
    "clipped": lambda w: Clipped.at(0.5, w, 0.5),
    "concrete": lambda w: Concrete(torch.zeros_like(w)),
    "hard concrete": lambda w: HardConcrete(torch.zeros_like(w)),
    "top-k": lambda w: TopK(torch.linspace(-1, 1, w.numel(), dtype=w.dtype).reshape(w.shape), 5, 2.0),
    "sampled": lambda w: Sampled(torch.zeros_like(w), rescale=True),
    "rounded": lambda w: Rounded(torch.full_like(w, 0.7)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", GATES)
def test_gates_compute_in_float32_and_return_the_dtype_of_the_weight(kind, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).to(dtype)
    twin = nn.Sequential(nn.Linear(6, 4))
    twin.load_state_dict({n: t.float() for n, t in model.state_dict().items()})
    wide = torch.promote_types(dtype, torch.float32)
    x = torch.randn(3, 6)
    gates = []
    for net, own in ((model, dtype), (twin.to(wide), wide)):
        attach(net, lambda n, w: GATES[kind](w))
        with sampling(net):
            torch.manual_seed(1)
            effective = net[0].weight
            assert effective.dtype is own
            net(x.to(own)).float().square().sum().backward()
        gates.append(
            (effective.detach(), *[p for p in attached_gates(net)["0.weight"].parameters() if p.grad is not None])
        )
    (narrow, *mine), (exact, *wanted) = gates
    assert torch.equal(narrow, exact.to(dtype))
    for p, q in zip(mine, wanted, strict=True):
        assert p.dtype is p.grad.dtype is (wide if p.ndim else torch.float32)  # one sigma per tensor, in float32
        torch.testing.assert_close(p.grad, q.grad, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["crbg", "cts", "edge_popup", "concrete", "imp", "saliency", "gem_miner"])
def test_methods_search_models_of_any_precision(method, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    data = (torch.randn(24, 6, dtype=dtype), torch.arange(24) % 3)
    options = {"cts": {"lr": 0.01, "search": 1}, "imp": {"lr": 0.01}, "saliency": {"lr": 0.01}}.get(method, {})
    found = find_ticket(model, data, 0.5, method, epochs=1, batch=12, **options)
    assert found.mask.kept == pytest.approx(36, rel=0.02)
    assert {p.dtype for p in found.apply(model).parameters()} == {dtype}


def test_a_device_without_float64_gets_float32_or_computes_on_the_cpu(monkeypatch):
    mps, cpu = torch.device("mps"), torch.device("cpu")
    assert dtypes.exact_device(mps) == cpu
    assert dtypes.exact_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert dtypes.fraction(torch.tensor([True, False, True])) == 2 / 3
    model = nn.ModuleList([nn.Linear(2, 2)])
    optimiser = torch.optim.SGD(model.parameters())
    assert TrainingState(model, optimiser, SearchHook(), cpu).running.dtype is torch.float64
    exact = kernels._torch_normal(5000, (1, 2))
    monkeypatch.setattr(dtypes, "WITHOUT_FLOAT64", ("cpu",))
    assert TrainingState(model, optimiser, SearchHook(), cpu).running.dtype is torch.float32
    monkeypatch.setattr(torch.Tensor, "double", None)
    torch.testing.assert_close(kernels._torch_normal(5000, (1, 2)), exact, rtol=1e-6, atol=1e-7)
