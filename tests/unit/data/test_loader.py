import numpy as np
import pytest
import torch
from made_up_data import SMALL

from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.data.sources import load
from crbg.errors import CrbgError

# --- inputs and batches ---


def test_inputs_are_standardised_per_channel(small):
    arrays, write = small
    write()
    part = load("mnist").test
    mean, std = (np.array(v).reshape(2, 1, 1) for v in (SMALL.mean, SMALL.std))
    naive = (arrays["test_x"] / 255 - mean) / std
    np.testing.assert_allclose(part.inputs(slice(0, 12)).numpy(), naive, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(part.inputs(torch.tensor([7, 3])).numpy(), naive[[7, 3]], rtol=1e-5, atol=1e-5)
    assert part.inputs(slice(0, 2)).dtype == torch.float32
    assert (part.x.numpy() == arrays["test_x"]).all()  # the stored pixels are unchanged


def test_batches_walk_through_everything_in_order(digits):
    pairs = list(digits.test.batches(128))
    assert [len(x) for x, _ in pairs] == [128, 128, 44]
    assert torch.cat([y for _, y in pairs]).equal(digits.test.y)
    assert torch.cat([x for x, _ in pairs]).equal(digits.test.inputs(slice(None)))


def numbered(count, shape=(1, 1, 1)):
    """Return `count` images, each labelled with its index."""
    x = torch.arange(count).reshape(-1, 1, 1, 1).expand(count, *shape).to(torch.uint8)
    return ImagePart(x, torch.arange(count), torch.zeros(1), torch.ones(1))


def labels(feed, epoch, start=0):
    return [y.tolist() for _, y in feed.epoch(epoch, start)]


@pytest.mark.parametrize(
    ("shape", "enlarged", "most"),
    [((1, 28, 28), 0, 1000), ((3, 32, 32), 0, 255), ((1, 8, 8), 0, 1000), ((3, 32, 32), 224, 64)],
)
def test_batches_that_are_only_looked_at_are_the_smaller_the_larger_the_images(shape, enlarged, most):
    part = ImagePart(
        torch.zeros(1100, *shape, dtype=torch.uint8),
        torch.zeros(1100, dtype=torch.long),
        torch.zeros(1),
        torch.ones(1),
        enlarged,
    )
    x, _ = next(part.batches())
    assert len(x) == most
    assert len(next(part.batches(7))[0]) == 7


def test_an_epoch_is_a_shuffle_without_its_incomplete_batch():
    feed = BatchLoader(numbered(103), 10, seed=4)
    assert sorted(feed.order(2).tolist()) == list(range(103))
    seen = labels(feed, 2)
    assert [len(b) for b in seen] == [10] * 10
    assert len(feed) == 10
    assert [i for b in seen for i in b] == feed.order(2)[:100].tolist()
    for x, y in feed.epoch(2):
        assert torch.allclose(x.flatten() * 255, y.to(torch.float32), atol=1e-4)


def test_the_order_is_a_function_of_seed_and_epoch():
    part = numbered(50)
    one = BatchLoader(part, 5, seed=1)
    list(one.epoch(0))
    torch.manual_seed(123)  # the state of torch's global generator has no effect
    assert labels(one, 3) == labels(BatchLoader(part, 5, seed=1), 3)
    orders = {tuple(BatchLoader(part, 5, seed=s).order(e).tolist()) for s in (0, 1, 2) for e in (0, 1, 2)}
    assert len(orders) == 9
    assert BatchLoader(part, 5, seed=0).order(0)[:6].tolist() == [15, 26, 28, 29, 12, 42]


@pytest.mark.parametrize(("flip", "crop"), [(False, 0), (True, 0), (False, 4), (True, 4)])
def test_an_epoch_taken_up_in_the_middle_has_the_same_tail(digits, flip, crop):
    feed = BatchLoader(digits.train, 64, seed=9, flip=flip, crop=crop)
    whole, tail = list(feed.epoch(5)), list(feed.epoch(5, 13))
    assert len(whole) == len(feed) == 18
    assert len(tail) == 5
    for (x, y), (x2, y2) in zip(whole[13:], tail, strict=True):
        assert x.equal(x2)
        assert y.equal(y2)


def test_flips_mirror_about_half_of_the_images(digits):
    plain = torch.cat([x for x, _ in BatchLoader(digits.train, 100, seed=0).epoch(0)])
    flipped = torch.cat([x for x, _ in BatchLoader(digits.train, 100, seed=0, flip=True).epoch(0)])
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(-1) == flipped).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 0.45 < float(mirrored.float().mean()) < 0.55


def test_crops_are_those_of_a_reflected_border(digits):
    """Each crop equals a window of the image after numpy's reflect padding, and every shift occurs."""
    crop, n = 3, 600
    part = digits.train.take(slice(n))
    plain = torch.cat([x for x, _ in BatchLoader(part, 100, seed=0).epoch(0)]).numpy()
    moved = torch.cat([x for x, _ in BatchLoader(part, 100, seed=0, crop=crop).epoch(0)]).numpy()
    seen = set()
    for one, other in zip(plain, moved, strict=True):
        wide = np.pad(one, ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
        windows = {(a, b): wide[:, a : a + 28, b : b + 28] for a in range(2 * crop + 1) for b in range(2 * crop + 1)}
        found = [shift for shift, window in windows.items() if (window == other).all()]
        assert found
        seen |= set(found)
    assert len(seen) == (2 * crop + 1) ** 2


def test_flips_and_crops_of_colour_images_keep_channels_together():
    x = torch.arange(2 * 3 * 5 * 4, dtype=torch.uint8).reshape(2, 3, 5, 4)
    part = ImagePart(x, torch.tensor([0, 1]), torch.zeros(3), torch.ones(3))
    feed = BatchLoader(part, 2, seed=3, flip=True, crop=2)
    for epoch in range(20):
        rows, columns = feed.sources(*feed.drawn(epoch))
        pixels, y = next(iter(feed.epoch(epoch)))
        for i, label in enumerate(y):
            expected = x[label][:, rows[i]][:, :, columns[i]]
            assert (pixels[i] * 255).round().to(torch.uint8).equal(expected)
    assert len({tuple(feed.sources(*feed.drawn(e))[1].flatten().tolist()) for e in range(20)}) > 10


def test_a_crop_wider_than_the_image_is_refused(digits):
    with pytest.raises(CrbgError, match="crop 28 does not fit images of"):
        BatchLoader(digits.train, 10, 0, crop=28)


def test_enlarged_inputs_keep_constant_images_and_say_their_shape(digits):
    large = digits.sized(56)
    assert digits.in_shape == (1, 28, 28)
    assert large.in_shape == (1, 56, 56)
    x, y = next(iter(BatchLoader(large.train, 32, seed=1, crop=2).epoch(0)))
    assert x.shape == (32, 1, 56, 56)
    assert y.equal(next(iter(BatchLoader(digits.train, 32, seed=1).epoch(0)))[1])
    flat = ImagePart(
        torch.full((3, 1, 8, 8), 51, dtype=torch.uint8), torch.zeros(3), torch.zeros(1), torch.ones(1), size=20
    )
    assert torch.allclose(flat.inputs(slice(None)), torch.full((3, 1, 20, 20), 0.2))


def test_the_digest_of_an_order_tells_seed_and_batch_apart():
    part = numbered(40)
    digests = [BatchLoader(part, size, seed).digest() for size, seed in ((5, 0), (5, 1), (8, 0), (5, 0))]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


@pytest.mark.parametrize("size", [0, 41, -1])
def test_a_batch_that_does_not_fit_is_refused(size):
    with pytest.raises(CrbgError, match=f"batch size {size} does not fit 40 training examples"):
        BatchLoader(numbered(40), size, 0)
