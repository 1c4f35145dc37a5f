"""Transformers for text: causality, values, attention, gates, a short search, and errors."""

import math

import pytest
import torch
from simple_gates import Counting
from texts import text_ticket
from torch import nn

from crbg import measure, models
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, weights
from crbg.masks.mask import Mask

BLOCK = ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]


def network(name="gpt-2x64", seed=0, **options):
    return models.initial(name, (20,), 9, "kaiming_normal", 1.0, seed, **options)[0]


def characters(*shape, seed=0):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(model, x, qk_scale=1.0):
    """Compute the logits with one softmax for each head and position; heads have 32 units."""

    def norm(h, gain=1.0):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * gain

    def unit(e):
        return e / e.square().mean(-1, keepdim=True).sqrt()

    def attended(block, h):
        length, width = h.shape
        q, k, v = (norm(h, block.norm1.weight) @ block.attention.qkv.weight.T).chunk(3, 1)
        out = torch.zeros(length, width)
        for head in range(width // 32):
            own = slice(32 * head, 32 * head + 32)
            for t in range(length):
                logits = k[: t + 1, own] @ q[t, own] * qk_scale / math.sqrt(32)
                out[t, own] = logits.softmax(0) @ v[: t + 1, own]
        return out @ block.attention.out.weight.T

    rows = []
    for row in x:
        h = unit(model.characters.weight[row]) + unit(model.positions.weight[: len(row)])
        for block in model.blocks:
            h = h + attended(block, h)
            up = norm(h, block.norm2.weight) @ block.mlp.up.weight.T
            h = h + (up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))) @ block.mlp.down.weight.T
        rows.append((norm(h, model.norm.weight) @ model.out.weight.T).T)
    return torch.stack(rows)


@pytest.mark.parametrize("qk_scale", [1.0, 4.0])
def test_logits_are_those_of_a_loop_over_heads_and_positions(qk_scale):
    model, x = network(qk_scale=qk_scale), characters(2, 7)
    torch.testing.assert_close(model(x), one_by_one(model, x, qk_scale), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_scale_multiplies_the_logits_of_the_attention():
    scaled, plain, x = network(qk_scale=4.0), network(), characters(2, 20)
    assert not scaled(x).allclose(plain(x), atol=0.1)
    for block in plain.blocks:
        block.attention.qkv.weight[:128] *= 2  # queries and keys
    torch.testing.assert_close(scaled(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_later_character_does_not_change_earlier_outputs():
    model, x = network(), characters(5, 20)
    out = model(x)
    assert out.shape == (5, 9, 20)
    for t in (0, 7, 19):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % 9
        differs = (model(changed) - out).abs().amax(1) > 1e-5
        assert not differs[:, :t].any()
        assert differs[:, t:].all(), "and it changes all later ones"


def test_a_shorter_window_and_another_batch_give_the_same_outputs():
    model, x = network(), characters(5, 20)
    torch.testing.assert_close(model(x[2:, :8]), model(x)[2:, :, :8], rtol=1e-4, atol=1e-4)


def test_the_order_of_earlier_characters_matters():
    """Without embeddings of positions, attention in one block sees a set of characters."""
    model, x = network("gpt-1x32"), characters(1, 20)
    swapped = x.clone()
    swapped[0, :2] = torch.tensor([1, 2])
    x[0, :2] = torch.tensor([2, 1])
    assert (model(x) - model(swapped))[:, :, -1].abs().max() > 1e-4


def test_gates_attach_to_all_linear_layers():
    model, roles = models.initial("gpt-2x64", (20,), 9, "kaiming_normal", 1.0, 0)
    expected = [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in BLOCK]
    assert list(weights(model)) == [*expected, "out.weight"]
    assert sum(w.numel() for w in weights(model).values()) == 2 * 12 * 64**2 + 9 * 64
    frozen = {n for n, role in roles.items() if role == "frozen"}
    gains = {f"blocks.{i}.norm{k}.weight" for i in (0, 1) for k in (1, 2)} | {"norm.weight"}
    assert frozen == {"characters.weight", "positions.weight"} | gains
    assert all(model.get_parameter(n).eq(1).all() for n in gains)
    plain = model(characters(2, 20))
    attach(model, lambda n, w: Counting())
    assert model(characters(2, 20)).allclose(plain, atol=1e-5)
    assert {g.count for g in attached_gates(model).values()} == {1}


def test_every_row_of_every_weight_gets_a_gradient():
    model = network()
    nn.functional.cross_entropy(model(characters(16, 20)), characters(16, 20, seed=1)).backward()
    for n, p in model.named_parameters():
        assert p.grad.reshape(len(p), -1).abs().sum(1).gt(0).all(), n


def test_embeddings_have_unit_variance():
    model, seen = network(), []
    model.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(characters(8, 20))
    assert float(seen[0].detach().var()) == pytest.approx(2.0, rel=0.1), "that of characters and positions"


def test_heads_and_silent_units_of_a_ticket_are_counted():
    model = network()
    mask = Mask.full(weights(model))
    mask["blocks.0.attention.qkv.weight"][64 + 32 : 64 + 64] = False  # the keys of the second head
    found = measure.heads(model, mask)["blocks.0.attention.qkv.weight"]
    assert found == {"q": [32 * 64] * 2, "k": [32 * 64, 0], "v": [32 * 64] * 2}
    mask["blocks.1.mlp.up.weight"][[3, 5, 7]] = False
    batches = [(characters(4, 20), characters(4, 20))]
    assert measure.silent_units(model, batches, mask) == {"blocks.0.mlp.act": 0, "blocks.1.mlp.act": 3}


def test_a_short_search_finds_a_ticket_that_predicts_better_than_frequencies():
    found, bits, toy = text_ticket("gpt-1x32", epochs=8)
    assert found.mask.density == pytest.approx(0.4, rel=0.02)
    assert bits < toy.naive["unigram"](toy.validation) - 0.6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt-0x64", {}, "model 'gpt-0x64' needs at least one layer and a width that is a multiple of 32"),
        ("gpt-2x48", {}, "a width that is a multiple of 32"),
        ("gpt-2x0", {}, "a width that is a multiple of 32"),
        ("gpt-2x64", {"qk_scale": 0}, "model_args.qk_scale must be above 0, not 0"),
        ("gpt-2x64", {"qk_scale": float("nan")}, "model_args.qk_scale must be above 0, not nan"),
        ("gpt-2x64", {"heads": 2}, "does not take these model_args"),
        ("gpt-2", {}, "unknown model 'gpt-2'"),
    ],
)
def test_what_cannot_be_built_says_why(name, options, message):
    with pytest.raises(CrbgError, match=message):
        models.build(name, (20,), 9, **options)


def test_a_window_beyond_the_context_is_refused():
    with pytest.raises(CrbgError, match="a window of 21 characters exceeds the context of 20"):
        network()(characters(2, 21))
