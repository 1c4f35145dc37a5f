import hashlib

import numpy as np
import pytest
import torch

from crbg.data.datasets import info
from crbg.data.sources import load
from crbg.data.splits import stratified


def pixels_of(part):
    return {x.numpy().tobytes() for x in part.x}


# --- the split ---


def test_digits_have_the_registered_sizes_and_shares(digits):
    known = info("digits")
    parts = {"train": digits.train, "validation": digits.validation, "test": digits.test}
    assert {n: len(p) for n, p in parts.items()} == {
        "train": known.train,
        "validation": known.validation,
        "test": known.test,
    }
    assert sum(map(len, parts.values())) == 1797
    assert digits.in_shape == known.shape
    every = torch.cat([p.y for p in parts.values()]).bincount(minlength=10)
    for part in parts.values():
        assert part.x.dtype == torch.uint8
        assert part.y.dtype == torch.int64
        share = part.y.bincount(minlength=10) - every * len(part) / 1797
        assert float(share.abs().max()) <= 1


def test_digits_parts_are_disjoint_and_hold_every_image(digits):
    from sklearn.datasets import load_digits

    original = load_digits()
    small = {x.astype(np.uint8).tobytes(): y for x, y in zip(original.images, original.target, strict=True)}
    assert len(small) == 1797  # all images differ, so their pixels identify them
    train, validation, test = map(pixels_of, (digits.train, digits.validation, digits.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    for part in (digits.train, digits.validation, digits.test):
        for x, y in zip(part.x[:50], part.y[:50], strict=True):
            # Take the middle pixel of each enlarged 3x3 block and rescale it to 0..16.
            back = np.rint(x[0, 3:27:3, 3:27:3].numpy() * (16 / 255)).astype(np.uint8)
            assert small[back.tobytes()] == int(y)


def test_the_split_is_pinned(digits):
    # Accuracies are comparable between versions only if the same images are held out.
    assert digits.digest == "d73f20239d47882046b00adba42f92fa88d458b5e0ef26c00770de1998c5e4a7"
    held = hashlib.sha256(digits.validation.x.numpy().tobytes()).hexdigest()
    assert held[:16] == "330ee20649b7ccb2"
    assert load("digits").train.x.equal(digits.train.x)


@pytest.mark.parametrize(("count", "classes"), [(7, 3), (30, 3), (1, 4), (57, 5)])
def test_stratified_shares_are_exact_within_one(count, classes):
    labels = np.random.default_rng(count).integers(0, classes, 60) ** 2
    chosen = stratified(labels, count, 0, "a stream")
    assert len(set(chosen.tolist())) == len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    for c in np.unique(labels):
        exact = (labels == c).sum() * count / 60
        assert abs((labels[chosen] == c).sum() - exact) < 1
    assert (stratified(labels, count, 0, "a stream") == chosen).all()


def test_a_split_depends_on_its_stream():
    labels = np.zeros(200, int)
    assert (stratified(labels, 50, 0, "a") != stratified(labels, 50, 0, "b")).any()
    assert (stratified(labels, 50, 0, "a") != stratified(labels, 50, 1, "a")).any()
