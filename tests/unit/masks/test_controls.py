import math

import pytest
import torch
from networks import randn, random_mask

from crbg import measure
from crbg.gates.attach import weights
from crbg.masks import controls
from crbg.masks.mask import Mask
from crbg.masks.select import keep_count


@pytest.mark.data
def test_a_random_mask_guesses_on_real_mnist(mnist, new_lenet):
    model = new_lenet(scale=0.3)
    assert [len(p) for p in (mnist.train, mnist.validation, mnist.test)] == [50_000, 10_000, 10_000]
    assert 3 < measure.accuracy(model, mnist.validation.batches(), controls.random(random_mask(model), 0.5, 0)) < 25


# sanity controls ----------------------------------------------------------------------------------------------------


def test_shuffle_moves_the_mask_and_keeps_counts(lenet):
    mask = random_mask(lenet, 0.1)
    moved = controls.shuffle(mask, 3)
    assert moved.layer_kept() == mask.layer_kept()
    assert moved.shapes == mask.shapes
    assert moved == controls.shuffle(mask, 3)
    assert moved != controls.shuffle(mask, 4)
    n, k = 784 * 300, mask.layer_kept()["fc1.weight"]
    overlap, expected = int((moved["fc1.weight"] & mask["fc1.weight"]).sum()), k * k / n
    assert abs(overlap - expected) < 4 * math.sqrt(expected)


def test_shuffle_gives_tensors_of_one_shape_orders_of_their_own():
    t = torch.arange(400) < 200
    moved = controls.shuffle(Mask({"a": t, "b": t}), 0)
    assert not torch.equal(moved["a"], moved["b"])


def test_invert_keeps_the_lowest_scores():
    scores = {"a": randn(6, 5), "b": randn(40, seed=1), "not masked": randn(3)}
    mask = Mask({"a": scores["a"] > 0.5, "b": scores["b"] > -1})
    turned = controls.invert(scores, mask)
    assert turned.layer_kept() == mask.layer_kept()
    for n, t in turned.items():
        lowest = scores[n].flatten().argsort(stable=True)[: int(mask[n].sum())]
        assert set(t.flatten().nonzero().flatten().tolist()) == set(lowest.tolist())


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3337, 1.0])
def test_a_random_mask_has_exact_counts_in_every_tensor(lenet, density):
    drawn = controls.random(random_mask(lenet), density, 0)
    assert drawn.layer_kept() == {n: keep_count(density, w.numel()) for n, w in weights(lenet).items()}
    if 0 < density < 1:
        assert drawn != controls.random(drawn, density, 1)
