import dataclasses
import hashlib
import io

import numpy as np
import pytest
import torch

from crbg import data
from crbg.data.datasets import DATA, DataInfo, info, root
from crbg.data.loader import BatchLoader, Part
from crbg.data.sources import load
from crbg.data.splits import stratified
from crbg.errors import CrbgError

SMALL = DataInfo("mnist", (2, 4, 4), 3, 30, 9, 12, (0.1, 0.4), (0.3, 0.2), "MNIST")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A data set called mnist of 39 + 12 tiny images, and a function that writes its file."""
    monkeypatch.setitem(data.DATA, "mnist", SMALL)
    monkeypatch.setenv("CRBG_DATA", str(tmp_path / "data"))
    pixels = np.random.default_rng(0)
    arrays = {
        "train_x": pixels.integers(0, 256, (39, 2, 4, 4), dtype=np.uint8),
        "train_y": np.arange(39) % 3,
        "test_x": pixels.integers(0, 256, (12, 2, 4, 4), dtype=np.uint8),
        "test_y": np.arange(12) % 3,
    }

    def write(drop=(), **changes):
        path = tmp_path / "data/mnist.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **{k: v for k, v in (arrays | changes).items() if k not in drop})
        return path

    return arrays, write


def pixels_of(part):
    return {x.numpy().tobytes() for x in part.x}


# --- the split ---


def test_digits_have_the_registered_sizes_and_shares(digits):
    known = info("digits")
    parts = {"train": digits.train, "validation": digits.validation, "test": digits.test}
    assert {n: len(p) for n, p in parts.items()} == {"train": known.train, "validation": known.validation, "test": known.test}
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
    assert len(small) == 1797  # no image occurs twice, so pixels tell them apart
    train, validation, test = map(pixels_of, (digits.train, digits.validation, digits.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    for part in (digits.train, digits.validation, digits.test):
        for x, y in zip(part.x[:50], part.y[:50], strict=True):
            # The middle pixel of each enlarged 3x3 block, back on the scale 0..16.
            back = np.rint(x[0, 3:27:3, 3:27:3].numpy() * (16 / 255)).astype(np.uint8)
            assert small[back.tobytes()] == int(y)


def test_the_split_is_pinned(digits):
    # Accuracies of other versions are comparable only while these images are held out.
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
    assert (part.x.numpy() == arrays["test_x"]).all()  # and the pixels stay as they are


def test_batches_walk_through_everything_in_order(digits):
    pairs = list(digits.test.batches(128))
    assert [len(x) for x, _ in pairs] == [128, 128, 44]
    assert torch.cat([y for _, y in pairs]).equal(digits.test.y)
    assert torch.cat([x for x, _ in pairs]).equal(digits.test.inputs(slice(None)))


def numbered(count, shape=(1, 1, 1)):
    """Images whose label is their index."""
    x = torch.arange(count).reshape(-1, 1, 1, 1).expand(count, *shape).to(torch.uint8)
    return Part(x, torch.arange(count), torch.zeros(1), torch.ones(1))


def labels(feed, epoch, start=0):
    return [y.tolist() for _, y in feed.epoch(epoch, start)]


@pytest.mark.parametrize(
    ("shape", "enlarged", "most"), [((1, 28, 28), 0, 1000), ((3, 32, 32), 0, 255), ((1, 8, 8), 0, 1000), ((3, 32, 32), 224, 64)]
)
def test_batches_that_are_only_looked_at_are_the_smaller_the_larger_the_images(shape, enlarged, most):
    part = Part(torch.zeros(1100, *shape, dtype=torch.uint8), torch.zeros(1100, dtype=torch.long), torch.zeros(1), torch.ones(1), enlarged)
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
    torch.manual_seed(123)  # nobody else's generator matters
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
    """Naive twin: numpy's reflect padding, then a window of the image's size; every shift up to the border occurs."""
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
    part = Part(x, torch.tensor([0, 1]), torch.zeros(3), torch.ones(3))
    feed = BatchLoader(part, 2, seed=3, flip=True, crop=2)
    for epoch in range(20):
        rows, columns = feed.moves(*feed.drawn(epoch))
        pixels, y = next(iter(feed.epoch(epoch)))
        for i, label in enumerate(y):
            expected = x[label][:, rows[i]][:, :, columns[i]]
            assert (pixels[i] * 255).round().to(torch.uint8).equal(expected)
    assert len({tuple(feed.moves(*feed.drawn(e))[1].flatten().tolist()) for e in range(20)}) > 10


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
    flat = Part(torch.full((3, 1, 8, 8), 51, dtype=torch.uint8), torch.zeros(3), torch.zeros(1), torch.ones(1), size=20)
    assert torch.allclose(flat.inputs(slice(None)), torch.full((3, 1, 20, 20), 0.2))


def test_the_digest_of_an_order_tells_seed_and_batch_apart():
    part = numbered(40)
    digests = [BatchLoader(part, size, seed).digest() for size, seed in ((5, 0), (5, 1), (8, 0), (5, 0))]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


@pytest.mark.parametrize("size", [0, 41, -1])
def test_a_batch_that_does_not_fit_is_refused(size):
    with pytest.raises(CrbgError, match=f"batch size {size} does not fit 40 training images"):
        BatchLoader(numbered(40), size, 0)


# --- files ---


def test_a_file_is_read_and_split(small):
    arrays, write = small
    write()
    d = load("mnist", download=False)
    assert (len(d.train), len(d.validation), len(d.test)) == (30, 9, 12)
    assert d.validation.y.bincount().tolist() == [3, 3, 3]
    assert not pixels_of(d.train) & pixels_of(d.validation)
    assert pixels_of(d.train) | pixels_of(d.validation) == {x.tobytes() for x in arrays["train_x"]}
    assert (d.test.x.numpy() == arrays["test_x"]).all()
    assert d.test.y.tolist() == arrays["test_y"].tolist()
    assert len(d.lossy_test) == 0
    write(test_y=(arrays["test_y"] + 1) % 3)
    assert load("mnist").digest != d.digest


def test_lossy_images_are_counted_from_the_start_of_the_test_part(small):
    _, write = small
    write(lossy_index=np.array([0, 38, 39, 44]))
    found = load("mnist")
    assert found.lossy_test.tolist() == [0, 5]
    assert found.lossy["test"] == 2
    assert found.lossy["train"] + found.lossy["validation"] == 2


def test_the_root_is_the_argument_then_the_variable_then_data(small, tmp_path, monkeypatch):
    _, write = small
    path = write()
    assert root() == tmp_path / "data"
    assert root(str(tmp_path)) == tmp_path
    path.rename(tmp_path / "mnist.npz")
    assert len(load("mnist", str(tmp_path)).test) == 12
    monkeypatch.delenv("CRBG_DATA")
    assert str(root()) == "data"
    assert str(root("~/x")).endswith("/x")
    assert "~" not in str(root("~/x"))


def damage(name):
    def text(path):
        path.write_text("certainly no archive")

    def empty(path):
        path.write_bytes(b"")

    def truncated(path):
        path.write_bytes(path.read_bytes()[:-200])

    def flipped(path):
        body = bytearray(path.read_bytes())
        body[500] ^= 255
        path.write_bytes(body)

    def pickled(path):
        buffer = io.BytesIO()
        np.savez(buffer, train_x=np.array([object()]), allow_pickle=True)
        path.write_bytes(buffer.getvalue())

    return locals()[name]


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "flipped", "pickled"])
def test_a_damaged_file_is_named(small, kind):
    _, write = small
    path = write()
    damage(kind)(path)
    with pytest.raises(CrbgError) as caught:
        load("mnist")
    assert str(path) in str(caught.value)
    assert "is damaged" in str(caught.value)
    assert "make the file again" in str(caught.value)


@pytest.mark.parametrize("key", ["train_x", "train_y", "test_x", "test_y"])
def test_a_missing_array_is_named(small, key):
    _, write = small
    path = write(drop=[key])
    with pytest.raises(CrbgError) as caught:
        load("mnist")
    assert f"{path} holds no array {key!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda a: {"train_x": a["train_x"].astype(np.float32)}, "train_x is float32"),
        (lambda a: {"test_x": a["test_x"].astype(np.int64)}, "test_x is int64"),
        (lambda a: {"test_x": a["test_x"].transpose(0, 2, 3, 1)}, "test_x is uint8 (12, 4, 4, 2)"),
        (lambda a: {"train_x": a["train_x"][:, :1]}, "train_x is uint8 (39, 1, 4, 4)"),
        (lambda a: {"train_y": a["train_y"][:-1]}, "train_y (38,)"),
        (lambda a: {"test_y": np.eye(3)[a["test_y"]]}, "test_y (12, 3)"),
        (lambda a: {"test_y": a["test_y"] + 1}, "test_y holds label 3, but mnist has 3 classes"),
        (lambda a: {"train_y": a["train_y"] - 1}, "but mnist has 3 classes"),
    ],
)
def test_arrays_of_the_wrong_kind_are_named(small, changes, words):
    arrays, write = small
    path = write(**changes(arrays))
    with pytest.raises(CrbgError) as caught:
        load("mnist")
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_missing_data_name_the_path_and_the_variable(tmp_path):
    with pytest.raises(CrbgError) as caught:
        load("mnist", str(tmp_path), download=False)
    for part in ("data set 'mnist'", str(tmp_path / "mnist.npz"), "CRBG_DATA", "data_dir"):
        assert part in str(caught.value)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(CrbgError, match="unknown data set 'fashion-mnist': did you mean 'fashion_mnist'"):
        load("fashion-mnist")


def test_the_registry_is_consistent():
    for name, entry in DATA.items():
        assert entry.name == name
        assert len(entry.mean) == len(entry.std) == entry.shape[0]
        assert min(dataclasses.astuple(entry)[3:6]) > 0
