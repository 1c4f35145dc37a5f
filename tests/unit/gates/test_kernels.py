"""Compiled gates agree with their torch version and with the plain gate; their noise is normally distributed."""

import shutil

import pytest
import torch
from scipy import stats

from crbg import find_ticket
from crbg.gates import kernels
from crbg.gates.attach import attach, attached_gates
from crbg.gates.base import straight_through
from crbg.gates.gaussian import Gaussian, _GatedProduct

KEY = (123456789, -987654321)
compiled = pytest.mark.skipif(kernels.compiled() is None, reason="this installation has no compiled gates")


@pytest.fixture
def in_torch(monkeypatch):
    """Return a function that disables the compiled kernels in a test."""

    def switch():
        monkeypatch.setattr(kernels, "compiled", lambda: None)

    return switch


def example(shape=(70, 61), layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(1)
    mu = (0.5 + 0.6 * torch.randn(shape, generator=generator)).to(memory_format=layout)
    w = torch.randn(shape, generator=generator).to(memory_format=layout)
    return mu.requires_grad_(True), w


def result(mu, w, grad=None, **options):
    mu.grad = None
    out = kernels.gated_product(mu, w, **options)
    out.backward(torch.ones_like(out) if grad is None else grad.to(out.dtype))
    return out.detach().clone(), mu.grad.clone()


def test_an_installation_with_a_c_compiler_has_compiled_gates():
    if not shutil.which("gcc") and not shutil.which("cc"):
        pytest.skip("no C compiler")
    assert kernels.compiled() is not None, (
        "run `make install` (or pip install -e .) again to build crbg/gates/kernels.c"
    )


@compiled
@pytest.mark.parametrize("count", [1, 5, 1024, 2047, 2048, 2049, 100_003])
def test_both_forms_of_the_noise_have_the_same_bits(count, in_torch):
    fast = kernels.normal(count, KEY)
    in_torch()
    assert torch.equal(fast.view(torch.int32), kernels.normal(count, KEY).view(torch.int32))


@compiled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("options", [{}, {"noise": 0.3}, {"noise": 0.3, "leak": 0.25}, {"hard": True}], ids=str)
def test_both_forms_of_the_product_have_the_same_bits(layout, bf16, options, in_torch):
    mu, w = example((9, 7, 3, 5), layout)
    grad = torch.randn(mu.shape)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            results.append(result(mu, w, grad, **options))
        in_torch()
    (fast, fast_slope), (slow, slow_slope) = results
    assert fast.dtype == slow.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert torch.equal(fast, slow)
    assert torch.equal(fast_slope, slow_slope)


@compiled
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_without_noise_the_bits_are_those_of_the_plain_gate(bf16, leak):
    """Runs recorded before the compiled kernels existed must be reproduced exactly."""
    mu, w = example()
    with torch.no_grad():
        mu[0, :4] = torch.tensor([0.0, 1.0, -3.0, 7.0])
    x = torch.randn(8, 61)

    def learn(gated):
        mu.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.linear(x, gated()).square().sum()
        loss.backward()
        return loss.detach(), mu.grad.clone()

    for mine, plain in (
        (lambda: kernels.gated_product(mu, w, leak=leak), lambda: _GatedProduct.apply(mu, w, None, 0.0, leak)),
        (lambda: kernels.gated_product(mu, w, hard=True), lambda: straight_through(mu, w, mu.detach() > 0.5)),
    ):
        (loss, slope), (plain_loss, plain_slope) = learn(mine), learn(plain)
        assert torch.equal(loss, plain_loss)
        assert torch.equal(slope, plain_slope)


@pytest.mark.parametrize("form", ["compiled", "torch"])
def test_the_product_and_its_slope_follow_from_the_noise(form, in_torch):
    if form == "torch":
        in_torch()
    mu, w = example()
    torch.manual_seed(3)
    out, slope = result(mu, w, noise=0.4, leak=0.1)
    torch.manual_seed(3)
    eps = kernels.normal(mu.numel(), kernels.draw_key()).reshape(mu.shape)
    u = mu.detach() + 0.4 * eps
    torch.testing.assert_close(out, w * u.clamp(0, 1))
    torch.testing.assert_close(slope, torch.where((u > 0) & (u < 1), w, 0.1 * w))


def test_the_second_derivative_is_that_of_the_plain_gate():
    mu, w = example((6, 5))

    def penalised(gated):
        x = torch.linspace(-1, 1, 5).requires_grad_(True)
        (first,) = torch.autograd.grad((gated() @ x).tanh().sum(), mu, create_graph=True)
        return torch.autograd.grad(first.square().sum(), mu)[0]

    plain = lambda: w * mu.clamp(0, 1)  # noqa: E731
    torch.testing.assert_close(penalised(lambda: kernels.gated_product(mu, w)), penalised(plain))


def test_the_number_of_threads_changes_nothing():
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(kernels.normal(200_001, KEY))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.fixture(scope="module")
def sample():
    return kernels.normal(1 << 21, KEY).double()


def test_noise_is_normal(sample):
    assert stats.kstest(sample[:200_000].numpy(), "norm").pvalue > 1e-3
    n = len(sample)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (float((sample**power).mean()) - expected) / (variance / n) ** 0.5
        assert abs(error) < 4.5, f"moment {power}"
    for level in (2.0, 3.0, 4.0):
        p = 2 * stats.norm.sf(level)
        assert abs(int((sample.abs() > level).sum()) - n * p) < 4.5 * (n * p) ** 0.5 + 1


def correlation(a, b):
    return abs(float((a * b).mean())) * len(a) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 511, 1024, 2048, 4096])
def test_neighbours_are_independent(sample, lag):
    a, b = sample[:-lag], sample[lag:]
    assert correlation(a, b) < 4.5
    assert correlation(a**2 - 1, (b**2 - 1) / 2) < 4.5
    assert correlation(a.abs() - (2 / torch.pi) ** 0.5, b) < 4.5


def test_draws_of_other_keys_are_independent(sample):
    """The test uses keys drawn by gates and keys that share one of their two words with the first key."""
    torch.manual_seed(0)
    keys = [kernels.draw_key() for _ in range(6)]
    for key in [*keys[:2], *((KEY[0], k) for _, k in keys[2:4]), *((k, KEY[1]) for k, _ in keys[4:])]:
        other = kernels.normal(len(sample), key).double()
        for shift in (0, 1, 2, 1024):
            assert correlation(sample, other.roll(shift)) < 4.5, (key, shift)
            assert correlation(sample**2 - 1, (other.roll(shift) ** 2 - 1) / 2) < 4.5, (key, shift)


@pytest.mark.parametrize("form", ["compiled", "torch"])
def test_a_push_is_added_to_one_gradient_and_then_forgotten(form, in_torch):
    if form == "torch":
        in_torch()
    mu, w = example()
    _, slope = result(mu, w)
    push = kernels.Push()
    add = push.value = torch.randn(mu.shape)
    assert torch.equal(result(mu, w, push=push)[1], slope + add)
    assert push.value is None
    assert torch.equal(result(mu, w, push=push)[1], slope)


@compiled
def test_the_memory_of_a_gradient_is_reused_only_after_its_release():
    mu, w = example()
    push, grad = kernels.Push(), torch.randn(mu.shape)

    def backward():
        kernels.gated_product(mu, w, push=push).backward(grad)
        return mu.grad.data_ptr()

    _, slope = result(mu, w, grad)
    mu.grad = None
    first = backward()
    push.reuse(mu)
    mu.grad.fill_(7.0)
    mu.grad = None
    assert backward() == first
    assert torch.equal(mu.grad, slope)
    assert push.memory is None

    push.reuse(mu)  # mu.grad is not None, so torch adds the new gradient to it as usual
    mu.grad.fill_(3.0)
    backward()
    assert torch.equal(mu.grad, 3 + slope)

    push.reuse(mu)
    mu.grad = None
    backward()
    held = mu.grad
    mu.grad = None
    assert backward() != held.data_ptr()  # the offered memory is used for one gradient only
    push.reuse(mu)
    push.reuse(None)
    held, mu.grad = mu.grad, None
    assert backward() != held.data_ptr()


@pytest.mark.parametrize("twice", [False, True], ids=["once a step", "a weight used twice"])
@pytest.mark.parametrize("options", [{"noise": 0.1, "source": "counter"}, {"noise": 0.0}, {"noise": 0.1}], ids=str)
def test_a_controlled_search_is_the_same_whoever_adds_the_push(options, twice, monkeypatch):
    """Either the gate's backward pass or the controller adds the gradient of the penalty; the search is the same."""

    class Twice(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return super().forward(y) if twice else y

    def search(layout):
        monkeypatch.setattr("crbg.search.density_controller.layout", layout)
        torch.manual_seed(0)
        x, y = torch.randn(64, 12), torch.randint(0, 12, (64,))
        found = find_ticket(Twice(12, 12), (x, y), 0.3, epochs=15, batch=16, **options)
        return found.scores["weight"]

    mine = search(kernels.layout)
    other = search(lambda t: object())  # layouts never match, so the backward pass does not add the penalty
    if twice:  # the three terms are summed in a different order
        torch.testing.assert_close(mine, other, atol=0.02, rtol=0)
    else:
        assert torch.equal(mine, other)
    assert not torch.equal(mine, torch.full_like(mine, 0.5))


def test_one_gate_draws_anew_in_every_pass_and_as_its_seed_says():
    model = attach(torch.nn.Linear(40, 30), lambda n, w: Gaussian(torch.full_like(w, 0.5), noise=0.2, source="counter"))
    for p in model.parameters():
        p.requires_grad_(False)
    (gate,) = attached_gates(model).values()
    gate.sampling = True
    torch.manual_seed(0)
    first, second = model.weight, model.weight
    torch.manual_seed(0)
    assert torch.equal(first, model.weight)
    assert not torch.equal(first, second)


def test_layouts_without_gaps_are_told_from_others():
    mu, w = example((4, 3, 2, 2))
    assert kernels.suits(mu, w)
    assert not kernels.suits(mu, w.to(memory_format=torch.channels_last))
    assert not kernels.suits(mu.detach()[:, ::2], w[:, ::2])
    assert not kernels.suits(mu.detach().double(), w.double())
    assert not kernels.suits(mu, w.clone().requires_grad_(True))
    assert not kernels.suits(mu.detach()[:0], w[:0])


def test_a_damaged_or_old_library_is_replaced_by_torch_with_a_warning(tmp_path, monkeypatch):
    (tmp_path / "_kernels.so").write_bytes(b"half of a fi")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    kernels.compiled.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Install crbg again"):
            assert kernels.compiled() is None
        assert kernels.normal(10, KEY).shape == (10,)
    finally:
        kernels.compiled.cache_clear()


def test_find_ticket_draws_by_counter_on_a_processor_and_as_it_is_told(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Gaussian, "__init__", lambda self, mu, **o: (seen.append(o["source"]), original(self, mu, **o))[1]
    )
    data = (torch.randn(64, 8), torch.randint(0, 3, (64,)))
    find_ticket(torch.nn.Linear(8, 3), data, 0.5, epochs=1)
    find_ticket(torch.nn.Linear(8, 3), data, 0.5, epochs=1, source="normal")
    assert seen == ["counter", "normal"]


original = Gaussian.__init__
