"""A search in bfloat16 agrees with a search in float32 up to rounding, and keeps parameters in float32."""

from contextlib import suppress

import pytest
import torch
from torch.nn.functional import cross_entropy

from crbg import methods, models
from crbg.data.loader import BatchLoader
from crbg.data.sources import load
from crbg.models.initial_weights import initialise
from crbg.training.precision import channels_last, computing, suggested


@pytest.mark.parametrize("method", ["crbg", "edge_popup"])
def test_bf16_agrees_with_fp32_and_keeps_parameters(method):
    data = load("digits")
    feed = BatchLoader(data.train.take(slice(256)), 64, 0, flip=True, crop=2)
    losses, seen = {}, []

    def loss(out, y):
        seen.append(out.dtype)
        return cross_entropy(out, y)

    for precision in ("fp32", "bf16"):
        model = models.build("conv2", data.in_shape, data.classes, width=0.125, norm="batch")
        initialise(model, "kaiming_normal", 1.0, 0)
        before = {n: t.clone() for n, t in model.named_parameters()}
        task = methods.SearchTask(feed, 0.5, 2, 0, loss, precision=precision)
        found = methods.get(method).find(model, task, methods.options(method, {}))
        losses[precision] = [row["loss"] for row in found.history]
        assert all(t.equal(before[n]) and t.dtype == torch.float32 for n, t in model.named_parameters())
        assert all(t.is_contiguous() for t in model.parameters()), "what is measured next is rounded alike everywhere"
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert losses["fp32"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


def test_attention_in_bf16_takes_plain_products_on_a_processor_and_gives_the_same_to_rounding():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 64, requires_grad=True) for _ in range(3))
    seen = {}
    for precision in ("fp32", "bf16"):
        with computing(torch.device("cpu"), precision):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        flash = "FlashAttention" in type(out.grad_fn).__name__
        (slope,) = torch.autograd.grad(out.float().square().sum(), q)
        seen[precision] = (flash, out.dtype, out.float(), slope)
    assert seen["fp32"][:2] == (True, torch.float32)
    assert seen["bf16"][:2] == (False, torch.bfloat16)
    for a, b in zip(seen["fp32"][2:], seen["bf16"][2:], strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.05)


def test_weights_are_contiguous_again_after_an_error():
    layer = torch.nn.Conv2d(4, 4, 3)
    for precision, inside in (("fp32", True), ("bf16", False)):
        with suppress(KeyboardInterrupt), channels_last(layer, precision):
            assert layer.weight.is_contiguous() == inside
            raise KeyboardInterrupt
        assert layer.weight.is_contiguous()


def test_bf16_is_suggested_for_convolutions_in_float32_where_there_are_instructions(monkeypatch):
    cpu, found = torch.device("cpu"), []
    for instructions in (True, False):
        monkeypatch.setattr("crbg.training.precision.has_bfloat16", lambda there=instructions: there)
        models = torch.nn.Conv1d(1, 1, 1), torch.nn.Linear(1, 1), torch.nn.Conv2d(1, 1, 1).double()
        found.append([suggested(model, cpu) for model in models])
    assert found == [["bf16", "fp32", "fp32"], ["fp32"] * 3]
