"""Gates under gradient checkpointing, in layers that are used several times, and in nested passes."""

import copy
from functools import partial

import pytest
import torch
from simple_gates import Counting, half_open
from torch import nn
from torch.utils.checkpoint import checkpoint

from crbg import find_ticket
from crbg.errors import CrbgError
from crbg.gates.attach import attach, attached_gates, sampling
from crbg.gates.gaussian import Units

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Two layers between an input and an output layer, checkpointed on request."""

    def __init__(self, inner, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = nn.Linear(8, 8), inner(), nn.Linear(8, 3)
        self.reentrant, self.times = reentrant, 1

    def forward(self, x):
        x = self.first(x).relu()[:, None]
        for _ in range(self.times):
            x = self.inner(x) if self.reentrant is None else checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return self.last(x[:, 0])


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(8, 8)

    def forward(self, x):
        state = None
        for _ in range(3):
            state = self.cell(x[:, 0], state)
        return state[0][:, None]


INNER = {
    "dense": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 8)),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
    "cells": Cells,
}


def gradients(kind, reentrant, source):
    model = Block(INNER[kind], reentrant).train()
    attach(model, partial(half_open, source=source))
    with sampling(model):
        for _ in range(2):  # antithetic samples come in pairs
            torch.manual_seed(1)
            model(X).square().sum().backward()
    return {n: g.mu.grad for n, g in attached_gates(model).items()}


@pytest.mark.parametrize("source", ["normal", "antithetic", "counter"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", INNER)
def test_checkpointing_gives_the_same_gradients(kind, reentrant, source):
    wanted = gradients(kind, None, source)
    found = gradients(kind, reentrant, source)
    for name, gradient in wanted.items():
        assert bool((gradient != 0).any())
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_in_two_checkpointed_parts_is_an_error_that_names_checkpointing(reentrant):
    model = Block(INNER["dense"], reentrant)
    model.times = 2
    with pytest.raises(CrbgError, match="gradient checkpointing"):
        find_ticket(model, (X, torch.arange(6) % 3), 0.5, epochs=1, batch=6)
    assert not attached_gates(model)
    model.reentrant = None
    assert find_ticket(model, (X, torch.arange(6) % 3), 0.5, epochs=1, batch=6).mask.kept


def test_a_layer_inside_and_outside_a_reentrant_part_gets_both_gradients():
    def gradient(part):
        torch.manual_seed(0)
        model = attach(nn.Sequential(nn.Linear(8, 8)), half_open)
        model[0].register_forward_hook(lambda layer, x, out: part(layer._plain, out))
        model[0]._plain = lambda x: nn.functional.linear(x, model[0].weight)
        model(X).square().sum().backward()
        return attached_gates(model)["0.weight"].mu.grad

    found = gradient(lambda layer, x: layer(checkpoint(layer, x, use_reentrant=True)))
    torch.testing.assert_close(found, gradient(lambda layer, x: layer(layer(x))))


def test_a_part_that_is_called_without_its_model_is_evaluated_anew_in_each_backward_pass():
    model = attach(nn.Sequential(nn.Linear(8, 8)), half_open)
    mu = attached_gates(model)["0.weight"].mu
    gradients = []
    for value in (0.3, 0.7):
        with torch.no_grad():
            mu.fill_(value)
        mu.grad, x = None, X.clone().requires_grad_()
        checkpoint(model[0], x, use_reentrant=False).square().sum().backward()
        gradients.append(x.grad)
    expected = 2 * (X @ (0.7 * model[0].parametrizations.weight.original.T) + model[0].bias)
    torch.testing.assert_close(gradients[1], expected @ (0.7 * model[0].parametrizations.weight.original))


def test_a_layer_that_is_used_twice_is_evaluated_once():
    block = nn.Linear(8, 8)
    model = attach(nn.Sequential(block, nn.ReLU(), block), lambda n, w: Counting())
    model(X)
    assert attached_gates(model)["0.weight"].count == 1


def test_layers_called_without_their_model_evaluate_each_gate_once_in_a_call():
    model = Block(INNER["attention"], None)
    attach(model, lambda n, w: Counting())
    model.inner(X[:, None])
    counts = {n: g.count for n, g in attached_gates(model).items()}
    assert counts["inner.self_attn.in_proj_weight"] == 1


def test_a_copy_has_a_scope_of_its_own():
    unit = Units(torch.full((8,), 0.5))
    model = attach(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), lambda n, w: unit)
    other = copy.deepcopy(model)
    with sampling(model), sampling(other):
        assert not torch.equal(model(X), other(X))
    scopes = {id(g.scope) for net in (model, other) for g in attached_gates(net).values()}
    assert len(scopes) == 2
    assert not any(g.scope.values for net in (model, other) for g in attached_gates(net).values())
