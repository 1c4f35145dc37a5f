import pytest
import torch
from networks import random_mask
from torch import nn

from crbg import measure, models
from crbg.data.sources import load
from crbg.gates.attach import attach, sampling
from crbg.gates.gaussian import Gaussian
from crbg.masks.mask import Mask


def test_flops_of_a_fully_connected_network_are_twice_its_weights(lenet):
    mask, x = random_mask(lenet, 0.3), torch.zeros(7, 1, 28, 28)
    assert measure.flops(lenet, x) == {"dense": 2 * 266_200, "kept": 2 * 266_200}
    counted = measure.flops(lenet, x, mask)
    assert counted["dense"] == 2 * 266_200
    assert counted["kept"] == pytest.approx(2 * mask.kept, rel=1e-6)
    assert lenet.training


def test_flops_of_attention_are_counted_whichever_kernel_does_it():
    model = models.build("timm:vit_tiny_patch16_224", (3, 8, 8), 2, patch_size=4, depth=1, embed_dim=12, num_heads=3)
    counted = measure.flops(model, torch.zeros(1, 3, 8, 8))["dense"]
    tokens, width = 5, 12
    linear = 2 * (4 * 3 * 16 * width + tokens * width * (3 * width + width + 8 * width) + width * 2)
    # Attention adds two products: queries with keys, and attention weights with values.
    assert counted == linear + 2 * 2 * tokens * tokens * width


def test_flops_of_a_convolution_count_every_position():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    conv, linear = 2 * 54 * 4, 2 * 48
    mask = Mask(
        {"0.weight": torch.arange(54).reshape(3, 2, 3, 3) < 27, "2.weight": torch.ones(4, 12, dtype=torch.bool)}
    )
    assert measure.flops(model, torch.zeros(1, 2, 4, 4), mask) == {
        "dense": conv + linear,
        "kept": pytest.approx(conv / 2 + linear),
    }


def test_modes_and_kernels_are_as_before_after_a_count_and_after_an_error():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train()
    model[1].eval()
    measure.flops(model, torch.zeros(1, 2, 3, 3))  # batch norm in training mode cannot take one value per channel
    with pytest.raises(RuntimeError):
        measure.flops(model, torch.zeros(1, 5, 3, 3))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.backends.mha.get_fastpath_enabled()


def test_flops_of_a_gated_network_are_those_of_the_dense_one(lenet):
    attach(lenet, lambda n, w: Gaussian(torch.full(w.shape, 0.5)))
    before = torch.get_rng_state()
    with sampling(lenet):
        assert measure.flops(lenet, torch.zeros(1, 1, 28, 28))["dense"] == 2 * 266_200
    assert torch.equal(before, torch.get_rng_state())


def test_flops_of_recurrent_layers_are_counted_and_shared_among_their_weights():
    """A CPU computes an LSTM in one fused kernel, which torch's counter does not see."""
    model, steps = models.build("lstm-8", (20,), 9), 20
    matrices = 4 * 8 * 8
    dense, layers = measure.layer_flops(model, torch.zeros(1, steps, dtype=torch.int64))
    assert dense == 2 * steps * (2 * matrices + 8 * 9)
    assert layers["layers.0.weight_ih_l0"] == layers["layers.0.weight_hh_l0"] == 2 * steps * matrices
    mask = random_mask(model, 0.25)
    kept = measure.flops(model, torch.zeros(1, steps, dtype=torch.int64), mask)["kept"]
    assert kept == pytest.approx(2 * steps * mask.kept, rel=1e-6)


def test_flops_of_sparse_products_count_stored_values():
    graph = load("toy_graph")
    features, adjacency = graph.train.common
    model = models.build("gcn-16", graph.in_shape, graph.classes)
    x, _ = graph.train.batch(slice(1))
    expected = 2 * (features._nnz() * 16 + adjacency._nnz() * (16 + 4) + 400 * 16 * 4)
    assert measure.flops(model, x)["dense"] == expected
