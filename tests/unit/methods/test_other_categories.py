"""Extensions of strong tickets: signs, integer factors, copied weights, and masks that are partly random."""

import dataclasses

import pytest
import torch
from torch import nn

from crbg import find_ticket
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, folder
from crbg.gates.attach import weights
from crbg.gates.scores import Coated, TopK
from crbg.masks.mask import Mask
from crbg.methods.contract import SearchResult
from crbg.packing import contexts, pack
from crbg.runs.artifacts import reopen
from crbg.runs.file_size import saved_bytes
from crbg.runs.open_test_set import evaluate
from crbg.runs.setup import initial_model
from crbg.runs.verify import BARE, PASS
from crbg.search.weight_changes import Recycle
from crbg.ticket import Ticket

BASE = Spec("digits", "lenet-32-16", "edge_popup", 0.2, scale=0.5, epochs=4, batch=64)
POLISHED = {"noise": 0.0, "firmness": 0.0, "polish": 0.5}
SPECS = {
    "signed": dataclasses.replace(BASE, method="crbg", epochs=20, options=POLISHED | {"signed": True}),
    "multicoated": dataclasses.replace(BASE, method="multicoated"),
    "recycling": dataclasses.replace(BASE, method="recycling", options={"period": 10}),
    "partial": dataclasses.replace(BASE, method="partial"),
}
ROLES = {"signed": "flipped", "multicoated": "multiplied", "recycling": "copied", "partial": None}


@pytest.mark.parametrize("name", SPECS)
def test_a_run_is_recorded_verified_and_evaluated(one_run, digits, name):
    done = one_run(SPECS[name])
    assert done.row.verdict == (BARE if name == "recycling" else PASS), done.row
    assert [r for r in done.record.roles if r != "frozen"] == [ROLES[name] or "gated"]
    assert done.record.value() > 40
    assert evaluate(done.spec, 0, done.bench).value() > 40
    where = folder(done.bench.results, done.spec, 0)
    assert (where / "ticket.safetensors").exists() == (name != "recycling")
    before, _ = initial_model(done.spec, digits, 0)
    after, _ = initial_model(done.spec, digits, 0)
    found = reopen(where, after)
    ratios = [(w / weights(before)[n])[found.mask[n]] for n, w in weights(after).items()]
    allowed = {"signed": {-1.0, 1.0}, "multicoated": {1.0, 2.0, 3.0}, "partial": {1.0}}
    if name in allowed:
        assert set(torch.cat(ratios).round(decimals=4).tolist()) == allowed[name]
        ticket = Ticket.load(where / "ticket.safetensors")
        rebuilt = weights(ticket.model())
        assert all(rebuilt[n].equal(w * found.mask[n]) for n, w in weights(after).items())
        packed = len(ticket.to_bytes())
        assert done.record.file_bytes == packed if name != "partial" else done.record.file_bytes < packed


def test_the_factors_are_the_number_of_nested_masks():
    torch.manual_seed(0)
    scores = torch.randn(6, 5)
    gate = Coated(scores, [15, 10, 5], gain=2.0)
    rank = scores.abs().flatten().argsort(descending=True).argsort().reshape(6, 5)
    coats = (rank < 15).float() + (rank < 10).float() + (rank < 5).float()
    w = torch.randn(6, 5, requires_grad=True)
    torch.testing.assert_close(gate(w), w * coats * 2)
    gate(w).sum().backward()
    torch.testing.assert_close(gate.score.grad, w.detach() * 2 * scores.sign())
    torch.testing.assert_close(w.grad, coats * 2)


@pytest.mark.parametrize(("method", "options"), [("multicoated", {"coats": 1}), ("partial", {"fixed": 0.0})])
def test_without_the_extension_the_search_is_edge_popup(one_run, method, options):
    plain = one_run(BASE).record
    same = one_run(dataclasses.replace(BASE, method=method, options=options)).record
    assert same.digests.mask == plain.digests.mask
    assert same.roles == plain.roles


def test_the_best_weights_of_a_layer_replace_its_worst_ones():
    w = torch.arange(1.0, 11.0).reshape(2, 5)
    gate = TopK(torch.tensor([[5.0, -1.0, 9.0, 4.0, 3.0], [8.0, 2.0, 7.0, -6.0, 10.0]]), 5)
    hook = Recycle({"w": w}, [gate], period=2, rate=0.2)
    hook.after_step(0.0)
    assert w.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    hook.after_step(0.0)
    # The smallest scores 1 and 2 (weights 2 and 7) get the weights of the largest ones, 9 and 10 (weights 3 and 10).
    assert w.flatten().tolist() == [1, 3, 3, 4, 5, 6, 10, 8, 9, 10]


def test_recycling_leaves_zero_weights_alone():
    w = torch.tensor([1.0, 0.0, 3.0, 4.0, 5.0, 0.0])
    gate = TopK(torch.tensor([1.0, 9.0, 3.0, 2.0, 8.0, 0.1]), 2)
    gate.restrict(w != 0)
    Recycle({"w": w}, [gate], period=1, rate=0.25).after_step(0.0)
    assert w.tolist() == [5, 0, 3, 4, 5, 0]


def test_a_part_of_the_mask_depends_on_the_seed_alone(digits):
    def kept(epochs, locked=1.0):
        torch.manual_seed(0)
        model = nn.Linear(784, 10)
        data = (digits.train.x[:200].flatten(1).float(), digits.train.y[:200])
        found = find_ticket(model, data, 0.2, "partial", epochs=epochs, fixed=0.7, locked=locked)
        return found.mask["weight"], found.searched["weight"]

    (one, searched), (two, same) = kept(1), kept(8)
    assert torch.equal(searched, same)
    assert int(searched.sum()) == round(0.3 * 7840)
    assert torch.equal(one[~searched], two[~searched])
    assert int(one[~searched].sum()) == round(0.2 * 5488)
    assert not torch.equal(one, two)
    assert int(two.sum()) == 1568
    pruned, searched = kept(1, locked=0.0)
    assert int(pruned.sum()) == 1568
    assert not bool(pruned[~searched].any())


def test_bytes_count_only_the_searched_part():
    torch.manual_seed(0)
    mask, part = Mask({"weight": torch.rand(20, 30) < 0.4}), torch.rand(20, 30) < 0.3
    assert saved_bytes(SearchResult(mask)) == 0
    searched = Mask({"weight": mask["weight"][part]})
    saved = saved_bytes(SearchResult(mask, searched=Mask({"weight": part})))
    assert saved == len(pack(mask, contexts.none)) - len(pack(searched, contexts.none)) > 0


def test_a_ticket_file_holds_signs_and_factors_but_no_copied_weights(digits, tmp_path):
    data, options = (digits.train.x[:400].flatten(1).float(), digits.train.y[:400]), {"epochs": 4, "batch": 20}
    for method, settings in (("crbg", {"signed": True}), ("multicoated", {})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
        initial = {n: t.clone() for n, t in model.state_dict().items()}
        found = find_ticket(model, data, 0.2, method, **options, **settings)
        found.ticket().save(tmp_path / "t.safetensors")
        with pytest.raises(CrbgError, match="the initial weights do not match"):
            Ticket.load(tmp_path / "t.safetensors").apply(model)  # it has the changed weights
        wanted = {n: t.clone() for n, t in found.apply(model).state_dict().items()}
        model.load_state_dict(initial)
        again = Ticket.load(tmp_path / "t.safetensors").apply(model).state_dict()
        assert all(torch.equal(t, wanted[n]) for n, t in again.items())
        assert any(bool((f != 1).any()) for f in Ticket.load(tmp_path / "t.safetensors").factors.values())
    found = find_ticket(nn.Linear(784, 10), data, 0.2, "recycling", period=2, **options)
    assert set(found.changed.values()) == {"copied"}
    with pytest.raises(CrbgError, match="a ticket stores no changed weights"):
        found.ticket()
