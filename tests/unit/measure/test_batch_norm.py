import pytest
import torch
from networks import randn, random_mask
from torch import nn

from crbg import measure
from crbg.models.initial_weights import initialise, tensor_digest


def normed():
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Flatten()
    )
    model.append(nn.Linear(12, 4))
    initialise(model, "kaiming_normal", 1.0, 0)
    with torch.no_grad():
        model[2].running_mean.fill_(7.0)
        model[2].num_batches_tracked.fill_(3)
    return model


@pytest.mark.parametrize("train", [True, False])
def test_recalibrated_statistics_are_a_cumulative_average_and_go_away(train):
    model = normed().train(train)
    mask, before = random_mask(model, 0.5), tensor_digest(model.state_dict())
    images = [2 + randn(8, 2, 4, 4, seed=i) for i in range(5)]
    maps = [nn.functional.conv2d(x, model[1].weight.detach() * mask["1.weight"]) for x in images]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    var = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    with measure.recalibrated(model, images, mask) as inside:
        assert inside is model
        torch.testing.assert_close(model[2].running_mean, mean)
        torch.testing.assert_close(model[2].running_var, var)
        assert int(model[2].num_batches_tracked) == 5
        assert model[2].weight.tolist() == [1.0] * 3
    assert tensor_digest(model.state_dict()) == before
    assert model[2].momentum == 0.3
    assert all(m.training == train for m in model.modules())


def test_recalibration_is_undone_after_an_exception():
    model = normed()
    before = tensor_digest(model.state_dict())

    def interrupted():
        with measure.recalibrated(model, [randn(8, 2, 4, 4)]):
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert tensor_digest(model.state_dict()) == before
    assert model[2].momentum == 0.3


def test_multipliers_that_do_not_fit_change_nothing():
    model = normed()
    before = tensor_digest(model.state_dict())
    with pytest.raises(RuntimeError, match="size of tensor"), measure.recalibrated(model, [], {"1.weight": randn(5)}):
        pass
    assert tensor_digest(model.state_dict()) == before
    assert model[2].momentum == 0.3


def test_running_statistics_are_recognised(lenet):
    assert measure.has_batch_norm(normed())
    assert not measure.has_batch_norm(lenet)
    assert not measure.has_batch_norm(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3)))


def test_every_module_keeps_its_own_mode():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(18, 2)).train()
    net[1].eval()  # frozen batch norm in a network that trains
    modes = [m.training for m in net.modules()]
    images = torch.rand(4, 1, 5, 5)
    measure.running_statistics(net, [images])
    assert [m.training for m in net.modules()] == modes
    measure.accuracy(net, [(images, torch.zeros(4, dtype=torch.int64))])
    assert [m.training for m in net.modules()] == modes
    with pytest.raises(RuntimeError):
        measure.accuracy(net, [(images[:, :, :2], torch.zeros(4, dtype=torch.int64))])
    assert [m.training for m in net.modules()] == modes
