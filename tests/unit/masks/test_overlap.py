import pytest
import torch

from crbg import Mask
from crbg.errors import CrbgError
from crbg.masks import controls
from crbg.masks.overlap import chance_jaccard, jaccard


def test_the_jaccard_index_counts_weights_that_both_masks_keep():
    a = Mask({"w": torch.tensor([True, True, True, False])})
    b = Mask({"w": torch.tensor([False, True, True, True])})
    assert jaccard(a, b) == 2 / 4
    assert jaccard(a, a) == 1
    assert jaccard(a, ~a) == 0
    with pytest.raises(CrbgError):
        jaccard(a, Mask({"w": torch.ones(3, dtype=torch.bool)}))


def test_independent_masks_overlap_as_chance_says():
    whole = Mask({"a": torch.ones(300, 200, dtype=torch.bool), "b": torch.ones(40, 50, dtype=torch.bool)})
    mixed = {"a": controls.random(whole, 0.1, 0)["a"], "b": controls.random(whole, 0.7, 0)["b"]}
    one, other = Mask(mixed), controls.random(whole, 0.4, 1)
    expected = chance_jaccard(one, other)
    assert expected == pytest.approx((60000 * 0.04 + 2000 * 0.28) / (60000 * 0.46 + 2000 * 0.82))
    assert jaccard(one, other) == pytest.approx(expected, rel=0.03)
