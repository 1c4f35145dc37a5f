import io
import re

import numpy as np
import pytest

from crbg.data.datasets import root
from crbg.data.sources import load
from crbg.errors import CrbgError


def pixels_of(part):
    return {x.numpy().tobytes() for x in part.x}


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
    assert "replace it, or delete it" in str(caught.value)


@pytest.mark.parametrize("key", ["train_x", "train_y", "test_x", "test_y"])
def test_a_missing_array_is_named(small, key):
    _, write = small
    path = write(drop=[key])
    with pytest.raises(CrbgError) as caught:
        load("mnist")
    assert f"{path} has no array {key!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda a: {"train_x": a["train_x"].astype(np.float32)}, "train_x is float32"),
        (lambda a: {"test_x": a["test_x"].astype(np.int64)}, "test_x is int64"),
        (lambda a: {"test_x": a["test_x"].transpose(0, 2, 3, 1)}, "test_x is uint8 (12, 4, 4, 2)"),
        (lambda a: {"train_x": a["train_x"][:, :1]}, "train_x is uint8 (39, 1, 4, 4)"),
        (lambda a: {"train_y": a["train_y"][:-1]}, "train_y (38,)"),
        (lambda a: {"test_y": np.eye(3)[a["test_y"]]}, "test_y (12, 3)"),
        (lambda a: {"test_y": a["test_y"] + 1}, "test_y has labels 1 to 3, but mnist has 3 classes"),
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
    raw = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    for part in ("data set 'mnist'", str(tmp_path / "mnist.npz"), str(raw), "CRBG_DATA", "data_dir"):
        assert part in str(caught.value)
    assert "download" not in str(caught.value)  # no download was tried
    with pytest.raises(CrbgError, match=re.escape(str(tmp_path / "cifar-10-batches-py"))):
        load("cifar10", str(tmp_path), download=False)


def test_the_whole_reason_of_a_failed_download_is_shown(tmp_path, monkeypatch):
    reason = "Error downloading train-images-idx3-ubyte.gz: " + "https://example.org/a/long/address/of/the/file " * 3

    def fail(*args, **options):
        raise RuntimeError(reason)

    monkeypatch.setattr("torchvision.datasets.MNIST.__init__", fail)
    with pytest.raises(CrbgError, match=re.escape(f"could not be downloaded (RuntimeError: {reason.strip()})")):
        load("mnist", str(tmp_path))


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(CrbgError, match="unknown data set 'fashion-mnist': did you mean 'fashion_mnist'"):
        load("fashion-mnist")
