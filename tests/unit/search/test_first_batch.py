import pytest
import torch
from torch import nn

from crbg.errors import CrbgError
from crbg.methods.contract import SearchTask
from crbg.search.first_batch import FEW, first_batch, logit_spread, shared_units


class Batches:
    """Shuffled batches whose order comes from torch's generator, as that of a loader."""

    def __len__(self):
        return 2

    def epoch(self, number):
        g = torch.Generator().manual_seed(0)
        x = torch.rand(8, 3, generator=g)
        for i in torch.randperm(8).split(4):
            yield x[i], i % 2


def task(seed=0):
    return SearchTask(Batches(), 0.5, 1, seed, nn.functional.cross_entropy)


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Linear(4, 2)).train()


def test_the_first_batch_depends_on_the_seed_and_leaves_modes_and_random_state():
    model = network(nn.Dropout())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with first_batch(model, task(1)) as (x, _):
        model.eval()
    with first_batch(model, task(1)) as (again, _):
        pass
    with first_batch(model, task(2)) as (other, _):
        pass
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_the_spread_is_that_of_the_logits_without_their_mean():
    model = network()
    with first_batch(model, task()) as (x, _), torch.no_grad():
        out = model(x)
    assert logit_spread(model, task()) == pytest.approx(float((out - out.mean(0)).std()))


def test_units_are_found_on_few_examples():
    model, seen = network(), []
    model.register_forward_hook(lambda net, args, out: seen.append(len(out)))
    assert {n: len(own) for n, own in shared_units(model, task()).items()} == {"1.weight": 4}
    assert seen == [FEW]
    assert model.training


def test_a_network_without_units_to_cut_out_is_refused():
    with pytest.raises(CrbgError, match="no unit of this network can be cut out, so `stream` has no gates; use `unit`"):
        shared_units(network(nn.LayerNorm(4)), task())
