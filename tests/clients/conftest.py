import copy
import warnings

import pytest
import torch
from simple_gates import half_open

from crbg import find_ticket
from crbg.gates.attach import attach, attached_gates, detach
from crbg.gates.layers import unwrap
from crbg.gates.selection import multiplied, raw_weight
from crbg.masks.select import keep_count
from crbg.search.snapshot import same_bytes
from crbg.ticket import Ticket
from crbg.training.forward import UserBatch, outputs_and_labels
from crbg.training.trees import tensors


@pytest.fixture
def search_as_a_client(tmp_path):
    """Return a function that searches for two steps in a model of another library, and checks what a user relies on.

    It checks that attached gates and the search leave the model as it was, that the applied ticket keeps the keys, the
    order and the types of the state_dict, that its outputs are those of the weights times the mask, and that a saved
    ticket restores the same network.
    """

    def search(model, batches, **arguments):
        assert len(batches) == 2
        inner = unwrap(model)
        initial, modes = snapshot(inner), [m.training for m in inner.modules()]
        places = [[*m._parameters, *m._buffers, *m._modules] for m in inner.modules()]
        twin = copy.deepcopy(inner)

        where, tied = (arguments.get(name) for name in ("where", "tied"))
        attach(model, half_open, where, tied)
        assert attached_gates(model)
        detach(model)
        assert_same_state(inner, initial)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of dense weights and of a ticket at chance
            found = find_ticket(model, batches, 0.5, epochs=1, progress=False, **arguments)
        assert_same_state(inner, initial)
        assert [m.training for m in inner.modules()] == modes
        assert all(p.grad is None for p in inner.parameters())
        candidates = sum(int(raw_weight(inner, name).count_nonzero()) for name in found.mask)
        assert (found.exact or found.mask).kept == keep_count(0.5, candidates)

        inner.eval()
        x = UserBatch(batches[0], arguments["forward"]) if "forward" in arguments else inputs_of(batches[0])
        factors = multiplied(inner, found.multipliers()) | found.statistics
        expected = list(tensors(outputs(inner, x, factors)))
        assert found.apply(model) is model
        got = list(tensors(outputs(inner, x)))
        assert expected
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert any(bool(t.isfinite().all()) for t in got)
        assert list(inner.state_dict()) == list(initial)
        assert [[*m._parameters, *m._buffers, *m._modules] for m in inner.modules()] == places

        found.ticket().save(tmp_path / "ticket.safetensors")
        Ticket.load(tmp_path / "ticket.safetensors").apply(twin)
        assert_same_state(twin, snapshot(inner))
        return found

    return search


@torch.no_grad()
def outputs(model, x, replaced=None):
    torch.manual_seed(0)
    return outputs_and_labels(model, x, None, replaced)[0]


def inputs_of(batch):
    return batch if isinstance(batch, dict) else batch[0]


def snapshot(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same_state(model, expected):
    state = model.state_dict()
    assert list(state) == list(expected)
    assert all(state[n].dtype == t.dtype and same_bytes(state[n], t) for n, t in expected.items())
