"""Recurrent networks: causality, states, embeddings, gates, a short search, and errors."""

import math

import pytest
import torch
from networks import randn, random_mask
from simple_gates import Counting
from texts import text_ticket
from torch import nn

from crbg import bake, models
from crbg.data.metrics import BITS
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, weights
from crbg.measure.accuracy import quality

TEXT = ["lstm-16", "gru-16", "lstm-16-12", "gru-12-16"]


def network(name, outputs=9, seed=0):
    return models.initial(name, (20,), outputs, "kaiming_normal", 1.0, seed)[0]


def characters(*shape, seed=0):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(seed))


# --- text ---


@pytest.mark.parametrize("name", TEXT)
def test_a_later_character_does_not_change_earlier_outputs(name):
    model, x = network(name), characters(5, 20)
    out = model(x)
    assert out.shape == (5, 9, 20)
    for t in (0, 7, 19):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % 9
        differs = (model(changed) != out).any(1)
        assert not differs[:, :t].any()
        assert differs[:, t:].all(), "and it changes all later ones"


@pytest.mark.parametrize("name", TEXT)
def test_every_window_starts_with_an_empty_state(name):
    model, x = network(name), characters(5, 20)
    assert model(x[3:]).allclose(model(x)[3:], atol=1e-6)
    assert model(x[:, :8]).allclose(model(x)[:, :, :8], atol=1e-6)


def one_by_one(model, x):
    """Compute the logits of an LSTM of one layer step by step, as Hochreiter and Schmidhuber with forget gates."""
    e = model.embedding(x)
    e = e / e.square().mean(-1, keepdim=True).sqrt()
    (layer,), state, cell, out = model.layers, torch.zeros(len(x), 16), torch.zeros(len(x), 16), []
    for t in range(x.shape[1]):
        i, f, g, o = (e[:, t] @ layer.weight_ih_l0.T + state @ layer.weight_hh_l0.T).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        state = o.sigmoid() * cell.tanh()
        out.append(state @ model.out.weight.T)
    return torch.stack(out, 2)


def test_logits_are_those_of_a_loop_over_time():
    model, x = network("lstm-16"), characters(5, 20)
    torch.testing.assert_close(model(x), one_by_one(model, x), rtol=1e-3, atol=1e-4)


def test_embeddings_have_unit_variance_whatever_their_scale():
    model, x = network("lstm-64"), characters(2, 20)
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = model(x)
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    torch.testing.assert_close(model(x), out, rtol=0.01, atol=0.01)
    for h in seen:
        torch.testing.assert_close(h.square().mean(-1), torch.ones(2, 20), rtol=0.01, atol=0)


@pytest.mark.parametrize(("name", "layers"), [("lstm-16", 1), ("gru-16-12", 2), ("gru_forecast-16-12", 2)])
def test_gates_attach_to_the_recurrent_weights_and_the_output(name, layers):
    model, roles = models.initial(name, (20,), 9, "kaiming_normal", 1.0, 0)
    recurrent = [f"layers.{i}.weight_{kind}_l0" for i in range(layers) for kind in ("ih", "hh")]
    assert list(weights(model)) == [*recurrent, "out.weight"]
    assert len(weights(model)["layers.0.weight_hh_l0"]) == 16 * (4 if "lstm" in name else 3), "an LSTM or a GRU"
    frozen = {n for n, role in roles.items() if role == "frozen"}
    assert frozen == (set() if "forecast" in name else {"embedding.weight"})
    assert not any("bias" in n for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "x"), [("lstm-16-12", characters(2, 20)), ("gru-16", characters(2, 20)), ("gru_forecast-8", randn(2, 20))]
)
def test_each_gate_is_evaluated_once_in_a_pass_over_all_characters(name, x):
    model = network(name)
    plain = model(x)
    attach(model, lambda n, w: Counting())
    for passes in (1, 2):
        assert model(x).allclose(plain, atol=1e-6)
        assert {g.count for g in attached_gates(model).values()} == {passes}


@pytest.mark.parametrize("name", [*TEXT, "gru_forecast-16", "gru_forecast-8-16"])
def test_every_weight_gets_a_gradient(name):
    model = network(name)
    forecast = "forecast" in name
    x, y = (randn(5, 20), randn(5, 9, seed=1)) if forecast else (characters(5, 20), characters(5, 20, seed=1))
    (nn.functional.mse_loss if forecast else nn.functional.cross_entropy)(model(x), y).backward()
    for n, p in model.named_parameters():
        assert p.grad.flatten(1).abs().sum(1).gt(0).all(), n


@torch.no_grad()
def test_a_masked_network_is_the_network_with_zeros():
    model, x = network("lstm-16"), characters(5, 20)
    mask = random_mask(model)
    found, _ = quality(model, [(x, x)], mask, BITS), bake(model, mask)
    assert found == pytest.approx(float(nn.functional.cross_entropy(model(x), x)) / math.log(2), rel=1e-5)


def test_a_short_search_finds_a_ticket_that_predicts_better_than_bigrams():
    found, bits, toy = text_ticket("lstm-32", epochs=10)
    assert found.mask.density == pytest.approx(0.4, rel=0.02)
    assert bits < toy.naive["bigram"](toy.validation) - 0.1
    assert bits < toy.naive["unigram"](toy.validation) - 1


# --- series ---


@pytest.mark.parametrize("name", ["gru_forecast-8", "gru_forecast-8-16"])
def test_a_forecast_depends_on_every_value_of_its_series_only(name):
    model, x = network(name), randn(5, 12).requires_grad_()
    out = model(x)
    assert out.shape == (5, 9)
    (gradient,) = torch.autograd.grad(out[2].sum(), x)
    assert gradient[2].ne(0).all()
    assert gradient[[0, 1, 3, 4]].eq(0).all()


def test_a_forecast_is_read_from_the_last_state():
    model, x = network("gru_forecast-8"), randn(5, 12)
    states, last = model.layers[0](x[..., None])
    assert model(x).allclose(model.out(last[0]), atol=1e-6)
    assert model(x[:, :6]).allclose(model.out(states[:, 5]), atol=1e-6)


# --- errors ---


@pytest.mark.parametrize("name", ["lstm-0", "gru-16-0", "gru_forecast-0"])
def test_a_width_of_zero_is_refused(name):
    with pytest.raises(CrbgError, match=f"model '{name}' has a layer of width 0"):
        models.build(name, (20,), 9)


def test_inputs_of_the_other_kind_name_the_networks_for_them():
    with pytest.raises(CrbgError, match="takes characters, not numbers; for a series, use a model gru_forecast-WIDTH"):
        network("lstm-16")(randn(2, 20))
    with pytest.raises(CrbgError, match="takes a series of floats; for text, use a model lstm-WIDTH or gru-WIDTH"):
        network("gru_forecast-16")(characters(2, 20))


@pytest.mark.parametrize("name", ["lstm", "lstm-", "lstm_forecast-", "gru-8x8", "rnn-8"])
def test_other_names_are_unknown(name):
    with pytest.raises(CrbgError, match=f"unknown model '{name}'"):
        models.build(name, (20,), 9)
