"""Fused kernels agree with the plain gate, on a GPU if available and otherwise in Triton's interpreter."""

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="this build of torch brings no Triton")

from crbg import find_ticket
from crbg.gates import kernels, triton
from crbg.gates.attach import attach, sampling
from crbg.gates.gaussian import Gaussian

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def fusing(monkeypatch):
    monkeypatch.setattr(Gaussian, "fuses", (DEVICE.type,))
    # Compare with the plain gate, not with the compiled CPU kernels.
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    triton.works.cache_clear()


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def both(monkeypatch, mu, w, grad, noise=0.0, leak=0.0):
    """Return (effective weight, gradient of mu) of the fused gate, followed by those of the plain gate."""
    out = []
    for kinds in ((DEVICE.type,), ()):
        monkeypatch.setattr(Gaussian, "fuses", kinds)
        gate = Gaussian(mu, noise=noise, leak=leak)
        torch.manual_seed(3)
        value = gate(w)
        value.backward(grad.to(value.dtype))
        out.append((value.detach(), gate.mu.grad))
    assert type(value.grad_fn).__name__ == "_GatedProductBackward", "the second is the plain one"
    return out


@pytest.mark.parametrize("leak", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(7, 5), (3000,), (4, 3, 5, 5), (8, 6, 1, 1)])
def test_without_noise_products_and_gradients_are_the_plain_ones_bit_by_bit(shape, leak, monkeypatch):
    mu, w, grad = 0.5 + numbers(*shape), numbers(*shape, seed=1), numbers(*shape, seed=2)
    mu.view(-1)[:3] = torch.tensor([0.0, 1.0, math.nan])
    if len(shape) == 4:
        mu, w = (t.to(memory_format=torch.channels_last) for t in (mu, w))
    (a, da), (b, db) = both(monkeypatch, mu, w, grad, leak=leak)
    assert torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0))
    assert a.isnan().sum() == 1
    number = ~a.isnan()  # at NaN, torch's own gradients differ between operations
    assert torch.equal(da[number], db[number])
    assert triton.layout(a) == triton.layout(b)


def drawn(mu, noise, w=None):
    gate = Gaussian(mu, noise=noise)
    gate.sampling = True
    torch.manual_seed(5)
    return gate, gate(torch.ones_like(mu) if w is None else w)


@pytest.mark.long
def test_noise_is_normal_independent_of_position_and_of_the_draw_before():
    n = 1 << 16
    gate, z = drawn(torch.full((n,), 0.5, device=DEVICE), 0.05)
    first, second = ((v.detach().double() - 0.5) / 0.05 for v in (z, gate(torch.ones(n, device=DEVICE))))
    for eps in (first, second):
        assert abs(eps.mean()) < 4 / math.sqrt(n)
        assert abs(eps.square().mean() - 1) < 4 * math.sqrt(2 / n)
        assert abs(eps.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
        assert abs((eps[1:] * eps[:-1]).mean()) < 4 / math.sqrt(n)
    assert abs((first * second).mean()) < 4 / math.sqrt(n)
    assert torch.equal(drawn(torch.full((n,), 0.5, device=DEVICE), 0.05)[1], z), "a seed gives the same noise"


@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_with_noise_it_is_the_plain_gate_of_that_noise(leak):
    shape = (50, 41)
    mu, w, grad = 0.5 + numbers(*shape), numbers(*shape, seed=1), numbers(*shape, seed=2)
    eps = (drawn(torch.full(shape, 0.5, device=DEVICE), 0.05)[1].detach() - 0.5) / 0.05
    gate = Gaussian(mu, noise=0.5, leak=leak)
    gate.sampling = True
    torch.manual_seed(5)
    out = gate(w)
    before = torch.get_rng_state()
    out.backward(grad)
    assert torch.equal(before, torch.get_rng_state()), "the backward pass leaves the generator alone"
    u = mu + 0.5 * eps
    torch.testing.assert_close(out, w * u.clamp(0, 1), rtol=0, atol=1e-5)
    # Leave out values near the corners, because eps was recovered with rounding errors.
    sure = (u.abs() > 1e-4) & ((u - 1).abs() > 1e-4)
    slope = torch.where((u > 0) & (u < 1), 1.0, leak)
    torch.testing.assert_close(gate.mu.grad[sure], (grad * w * slope)[sure])
    assert sure.float().mean() > 0.99


def test_nothing_is_kept_for_the_backward_pass_but_gates_and_weights():
    kept, w = [], numbers(40, 30)
    assert triton.works(DEVICE)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gate, _ = drawn(torch.full((40, 30), 0.5, device=DEVICE), 0.5, w)
    assert sorted(t.data_ptr() for t in kept) == sorted([gate.mu.data_ptr(), w.data_ptr()])


def test_under_autocast_weights_come_rounded_and_gradients_are_the_plain_ones(monkeypatch):
    # All values are exact in bfloat16, because Triton's interpreter truncates where a GPU rounds to nearest.
    x, w = numbers(16, 30), numbers(20, 30, seed=1).bfloat16().float()
    mu = 2.0 ** torch.randint(-3, 2, (20, 30), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    results = []
    for kinds in ((DEVICE.type,), ()):
        monkeypatch.setattr(Gaussian, "fuses", kinds)
        gate = Gaussian(mu, noise=0.0)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            weight = gate(w)
            out = torch.nn.functional.linear(x, weight)
        out.float().square().mean().backward()
        results.append((weight.dtype, out, gate.mu.grad))
    (kind, out, grad), (plain_kind, plain, plain_grad) = results
    assert (kind, plain_kind) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, plain)
    assert torch.equal(grad, plain_grad)


def test_what_the_kernels_do_not_suit_goes_the_plain_way():
    mu, w = torch.full((6, 4, 3, 3), 0.5, device=DEVICE), numbers(6, 4, 3, 3)
    name = lambda gate, w: type(gate(w).grad_fn).__name__  # noqa: E731
    assert name(Gaussian(mu, noise=0.0), w) == "_FusedBackward"
    assert name(Gaussian(mu, noise=0.0), w.to(memory_format=torch.channels_last)) == "_GatedProductBackward"
    assert name(Gaussian(mu, noise=0.0), w.clone().requires_grad_(True)) == "_GatedProductBackward"
    assert name(Gaussian(mu.double(), noise=0.0), w.double()) == "_GatedProductBackward"
    antithetic = Gaussian(mu, source="antithetic")
    antithetic.sampling = True
    assert name(antithetic, w) == "_GatedProductBackward"
    wide = torch.full((6, 8), 0.5, device=DEVICE)[:, ::2]
    assert not triton.suits(wide, torch.empty_strided(wide.shape, wide.stride(), device=DEVICE))


@pytest.mark.parametrize("broken", ["raises", "wrong noise", "no slope"])
def test_kernels_that_fail_their_check_are_left_alone_with_a_warning(broken, monkeypatch):
    honest = triton._Fused.apply

    def crooked(mu, w, noise, leak, dtype):
        if broken == "raises":
            raise RuntimeError("no compiler")
        return honest(
            mu, w, noise * (0.5 if broken == "wrong noise" else 1.0), 1.0 if broken == "no slope" else leak, dtype
        )

    monkeypatch.setattr(triton._Fused, "apply", crooked)
    gate, w = Gaussian(torch.full((6, 4), 0.5, device=DEVICE), noise=0.0), numbers(6, 4)
    with pytest.warns(
        UserWarning,
        match={"raises": "no compiler", "wrong noise": "noise is not normal", "no slope": "different noise"}[broken],
    ):
        out = gate(w)
    assert type(out.grad_fn).__name__ == "_GatedProductBackward"
    assert torch.equal(out, w * 0.5)


@pytest.mark.long
def test_a_search_with_fused_gates_lands_and_its_noise_follows_the_seed():
    x = numbers(64, 12)
    y = (x[:, 0] > 0).long()
    tickets = []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 2)).to(DEVICE)
        tickets.append(find_ticket(model, (x, y), density=0.3, epochs=20, batch=16, noise=0.25, lr=0.1))
    assert tickets[0].mask == tickets[1].mask
    assert abs(tickets[0].mask.density - 0.3) < 0.01
    model = torch.nn.Sequential(torch.nn.Linear(12, 20))
    attach(model.to(DEVICE), lambda name, w: Gaussian(torch.full_like(w, 0.5)))
    with sampling(model):
        assert type(model[0].weight.grad_fn).__name__ != "_FusedBackward", (
            "a weight that still trains goes the plain way"
        )


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from crbg.gates import triton
for kernel, before in ((triton._forward, ()), (triton._backward, ("grad",))):
    kinds = {"mu": "*fp32", "w": "*fp32"} | dict.fromkeys(before, "*bf16") | {"out": "*fp32" if before else "*bf16"}
    kinds |= {"seed": "i64", "noise": "fp32"} | ({"leak": "fp32"} if before else {}) | {"count": "i32"}
    kinds |= {"noisy": "constexpr", "block": "constexpr"}
    made = compile(ASTSource(kernel, kinds, {"noisy": True, "block": triton.BLOCK}), target=GPUTarget("cuda", 90, 32))
    print(len(made.asm["cubin"]), "cvt.rn.bf16.f32" in made.asm["ptx"])
"""


@pytest.mark.long
def test_the_kernels_compile_for_a_gpu_without_one_and_round_to_the_nearest(tmp_path):
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (size, rounds), (back, _) = (line.split() for line in done.stdout.splitlines())
    assert int(size) > 1000
    assert int(back) > 1000
    assert rounds == "True"
