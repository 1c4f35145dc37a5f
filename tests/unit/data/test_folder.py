"""Data sets from image folders: pixels, splits, interruptions, and runs on one and on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from paths import ROOT
from PIL import Image

from crbg.data import folder
from crbg.data.datasets import info, own
from crbg.data.images import ImagePart
from crbg.data.loader import BatchLoader
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments.spec import Spec
from crbg.runs.open_test_set import evaluate
from crbg.runs.verify import BARE, PASS


def draw(where, counts, seed=0, shape=(12, 16)):
    """Write images into one folder for each of the classes a and b; the brightness of an image indicates its class."""
    made = np.random.default_rng(seed)
    for part, count in counts.items():
        for i, name in enumerate("ab"):
            (where / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                pixels = made.integers(100 * i, 100 * i + 100, (*shape, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(where / part / name / f"{k:03}.png")


@pytest.fixture
def images(tmp_path, monkeypatch):
    draw(tmp_path / "raw", {"train": 40, "val": 10})
    monkeypatch.setenv("CRBG_DATA", str(tmp_path / "data"))
    return tmp_path / "raw"


def root():
    return Path(os.environ["CRBG_DATA"])


def test_arrays_hold_the_middle_of_every_image_in_order(images):
    folder.prepare("mine", images, 12, root())
    x, y = np.load(root() / "mine/train_x.npy"), np.load(root() / "mine/train_y.npy")
    assert x.shape == (80, 3, 12, 12)
    assert y.tolist() == [0] * 40 + [1] * 40
    first = np.asarray(Image.open(images / "train/a/000.png"))
    # The height is already 12, so the image is not scaled, and two columns are cut on each side.
    assert (x[0] == first[:, 2:14].transpose(2, 0, 1)).all()
    entry = info("mine")
    assert (entry.shape, entry.classes, entry.train, entry.validation, entry.test) == ((3, 12, 12), 2, 77, 3, 20)
    assert entry.mean == pytest.approx((x / 255).mean((0, 2, 3)))
    assert entry.std == pytest.approx((x / 255).std((0, 2, 3)), rel=1e-6)


def test_images_are_scaled_by_their_shorter_side(images):
    draw(images, {"train": 1}, shape=(24, 40))
    folder.prepare("mine", images, 12, root())
    wide = Image.open(images / "train/a/000.png").resize((20, 12), Image.Resampling.BILINEAR)
    assert (np.load(root() / "mine/train_x.npy")[0] == np.asarray(wide)[:, 4:16].transpose(2, 0, 1)).all()


def test_parts_are_rows_of_one_array_and_equal_to_those_in_memory(images):
    folder.prepare("mine", images, 12, root())
    data = load("mine")
    assert data.train.x is data.validation.x
    assert sorted(torch.cat([data.train.rows, data.validation.rows]).tolist()) == list(range(80))
    in_memory = ImagePart(data.train.x[data.train.rows].clone(), data.train.y, data.train.mean, data.train.std)
    for flip, crop in ((False, 0), (True, 2)):
        mapped, loaded = (BatchLoader(part, 16, 0, flip, crop).epoch(1) for part in (data.train, in_memory))
        for (a, b), (c, d) in zip(mapped, loaded, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    half = data.train.take(slice(10)).take(torch.arange(10) % 2 == 0)
    assert torch.equal(
        half.inputs(slice(None)), in_memory.take(slice(10)).take(torch.arange(10) % 2 == 0).inputs(slice(None))
    )
    whole = data.train.join(data.validation)
    assert len(whole) == 80
    assert torch.equal(whole.pixels(slice(77, 80)), data.validation.pixels(slice(None)))


@pytest.mark.parametrize("lost", [False, True])
def test_making_goes_on_where_it_was_interrupted_unless_the_arrays_are_lost(images, monkeypatch, lost):
    folder.prepare("whole", images, 12, root())
    decoded, real = [], folder._square

    def fails_late(image, size):
        decoded.append(image)
        if len(decoded) == 50:
            raise KeyboardInterrupt
        return real(image, size)

    monkeypatch.setattr(folder, "_square", fails_late)
    monkeypatch.setattr(folder.time, "monotonic", iter(range(0, 10**6, 60)).__next__)
    with pytest.raises(KeyboardInterrupt):
        folder.prepare("mine", images, 12, root(), batch=16)
    assert not (root() / "mine").exists()
    done = json.loads((root() / "mine.partial/state.json").read_text())["done"]["train"]
    assert done == 48
    if lost:
        (root() / "mine.partial/train_x.npy").unlink()
    folder.prepare("mine", images, 12, root(), batch=16)
    assert len(decoded) == 50 + (80 if lost else 32) + 20  # the remaining training images, then the test images
    for file in ("train_x.npy", "train_y.npy", "test_x.npy", "index.json"):
        assert (root() / "mine" / file).read_bytes() == (root() / "whole" / file).read_bytes()
    assert not (root() / "mine.partial").exists()


def test_a_folder_that_is_no_prepared_data_set_is_left_alone(images):
    draw(root() / "mine", {"train": 2, "val": 2})
    with pytest.raises(CrbgError, match="exists and is not a prepared data set"):
        folder.prepare("mine", root() / "mine", 12, root())
    assert (root() / "mine/train/a/000.png").exists()


def test_images_that_changed_meanwhile_are_read_again(images):
    partial = root() / "mine.partial"
    partial.mkdir(parents=True)
    state = {
        "size": 12,
        "files": {"train": "x", "test": "y"},
        "done": {"train": 70, "test": 0},
        "sum": [9] * 3,
        "squares": [9] * 3,
    }
    (partial / "state.json").write_text(json.dumps(state))
    folder.prepare("mine", images, 12, root())
    folder.prepare("other", images, 12, root())
    assert [d.name for d in own()] == ["mine", "other"]
    assert (root() / "mine/index.json").read_bytes() == (root() / "other/index.json").read_bytes()


@pytest.mark.parametrize("method", ["crbg", "saliency"])
def test_a_run_learns_is_evaluated_and_verified(images, one_run, method):
    folder.prepare("mine", images, 12, root())
    spec = Spec("mine", "lenet-16", method, 0.5, init="kaiming_normal", epochs=5, batch=11, flip=True, crop=1)
    done = one_run(spec)
    assert done.record.train_images == 77
    assert evaluate(done.spec, 0, done.bench).value() > 90
    trained = (BARE, ("its weights were changed, so it has no ticket file",))
    assert (done.row.verdict, done.row.remarks) == ((PASS, ()) if method == "crbg" else trained)


@pytest.mark.long
@pytest.mark.xdist_group("processes")
def test_two_processes_train_one_winning_ticket(images, tmp_path):
    folder.prepare("mine", images, 12, root())
    base = {
        "data": "mine",
        "model": "conv2",
        "model_args": {"width": 0.125, "norm": "batch"},
        "init": "kaiming_normal",
        "epochs": 4,
        "batch": 14,
    }
    arms = {"imp": {"method": "imp", "set": {"density": 0.3, "options": {"drop": 0.5, "rewind": 1, "lr": 0.05}}}}
    arms["cts"] = {"method": "cts", "set": {"density": 0.3, "options": {"search": 2, "rewind": 1, "lr": 0.05}}}
    arms["synflow"] = {
        "method": "saliency",
        "set": {"density": 0.3, "options": {"score": "synflow", "rounds": 2, "rewind": 1, "lr": 0.05}},
    }
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"device": "cpu", "experiments": {"e": {"seeds": [0], "base": base, "arms": arms}}})
    )
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "crbg",
        "run",
        "e",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(p.read_text()) for p in tmp_path.glob("results/runs/*/seed0/record.json")]
    assert len(records) == 3
    for record in records:
        layers = record["layers"].values()
        assert sum(n["kept"] for n in layers) == round(0.3 * sum(n["total"] for n in layers))
        assert record["validation"]["readings"]["binary"]["accuracy"] >= 60


@pytest.mark.long
def test_the_command_makes_and_shows_it(images, crbg):
    code, out, _ = crbg("data", "mine", "--images", str(images), "--size", "12")
    assert code == 0
    assert "train: 80 of 80 images" in out
    assert "mine: 3 x 12 x 12; 77 training, 3 validation, 20 test images" in out
    assert crbg("data", "mine", "--images", str(images), "--size", "12")[0] == 0  # the data set already exists
    code, _, err = crbg("data", "mine", "--images", str(images), "--size", "16")
    assert code == 2
    assert "mine contains images of 12 pixels; choose another name for images of 16 pixels, or delete" in err
    assert "is slow" not in out
    assert "`--size 32`" in crbg("data", "big", "--images", str(images), "--size", "65")[1]


def test_a_set_is_found_in_the_data_root_of_the_configuration(images, tmp_path, monkeypatch, crbg):
    """The configuration may name the data set before it exists, and CRBG_DATA need not be set."""
    monkeypatch.delenv("CRBG_DATA")
    monkeypatch.chdir(tmp_path)
    base = {"data": "mine", "model": "lenet-4", "method": "random", "density": 0.5, "epochs": 0, "batch": 8}
    body = {"data_dir": "~/sets", "experiments": {"e": {"base": base, "arms": {"a": {}}}}}
    Path("config.yaml").write_text(yaml.safe_dump(body))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = crbg("data", "mine", "--images", str(images), "--size", "12")
    assert code == 0
    assert "mine: 3 x 12 x 12; 77 training" in out
    assert (tmp_path / "sets/mine/index.json").exists()
    assert "mine  " in crbg("list", "data")[1]
    assert crbg("run", "e")[0] == 0
    assert crbg("verify", "e")[0] == 0


NOISE = np.random.default_rng(0).random((16, 16))


def rgba(alpha):
    """Return a black drawing on a transparent ground; `alpha` is its opacity in [0, 1]."""
    return Image.fromarray(np.dstack([np.zeros((16, 16, 3), np.uint8), (255 * alpha).round().astype(np.uint8)]))


FORMATS = {
    "grey": (lambda a: Image.fromarray((255 * a).round().astype(np.uint8)), "png", 255 * NOISE),
    "16 bits": (lambda a: Image.fromarray((65535 * a).round().astype(np.uint16)), "png", 255 * NOISE),
    "float": (lambda a: Image.fromarray(a.astype(np.float32)), "tiff", 255 * NOISE),
    "transparent": (rgba, "png", 255 - 255 * NOISE),
    "transparent palette": (lambda a: rgba(a > 0.5).quantize(2), "png", 255 * (NOISE <= 0.5)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_of_every_format_become_eight_bits(kind, tmp_path):
    made, suffix, expected = FORMATS[kind]
    path = tmp_path / f"image.{suffix}"
    made(NOISE).save(path)
    pixels = folder._square(folder._rgb(str(path)), 16).numpy()
    assert pixels == pytest.approx(np.broadcast_to(expected, (3, 16, 16)), abs=1)


@pytest.mark.parametrize(("pixels", "found"), [(NOISE * 200, "to 19"), (NOISE - 0.1, "from -0.09")])
def test_floats_of_unknown_range_are_refused(images, pixels, found):
    Image.fromarray(pixels.astype(np.float32)).save(images / "train/a/float.tiff")
    with pytest.raises(CrbgError, match=f"float.tiff: its F pixels range .*{found}"):
        folder.prepare("mine", images, 12, root())


def test_constant_images_are_refused(tmp_path):
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "raw" / part).mkdir(parents=True)
        Image.new("RGB", (12, 12), (7, 8, 9)).save(tmp_path / "raw" / part / "0.png")
    with pytest.raises(CrbgError, match="the same constant colour"):
        folder.prepare("mine", tmp_path / "raw", 12, tmp_path)


def test_bad_images_are_named(images):
    def complaint(**other):
        with pytest.raises(CrbgError) as error:
            folder.prepare(**{"name": "mine", "images": images, "size": 12, "root": root()} | other)
        return str(error.value)

    assert "built-in data set" in complaint(name="mnist")
    assert "at least 8" in complaint(size=4)
    assert "has no folder train" in complaint(images=images / "train")
    (images / "train/a/001.png").write_text("no image")
    assert "an image cannot be read" in complaint()
    draw(images, {"train": 2})
    (images / "val/c").mkdir()
    assert "c" in complaint()
    with pytest.raises(CrbgError, match=r"unknown data set 'mine'.*crbg data mine --images"):
        info("mine")


def test_a_damaged_set_says_so(images):
    folder.prepare("mine", images, 12, root())
    np.save(root() / "mine/train_x.npy", np.zeros((3, 3), np.uint8))
    with pytest.raises(CrbgError, match=r"train_x is uint8 \(3, 3\)"):
        load("mine")
    (root() / "mine/index.json").write_text("{}")
    with pytest.raises(CrbgError, match=r"index\.json is damaged"):
        info("mine")


@pytest.mark.long
def test_the_overlay_for_imagenet_asks_for_four_gpus_once_the_data_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CRBG_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    files = ["config.yaml", "config/overlays/imagenet.yaml"]
    with pytest.raises(CrbgError, match="crbg data imagenet --images DIR"):
        configs.read(files)
    (tmp_path / "imagenet").mkdir()
    made = {
        "shape": [3, 224, 224],
        "classes": 1000,
        "train": 1_229_921,
        "validation": 51_246,
        "test": 50_000,
        "digest": "d",
    }
    (tmp_path / "imagenet/index.json").write_text(
        json.dumps(made | {"mean": [0.48, 0.46, 0.41], "std": [0.23, 0.22, 0.23]})
    )
    config = configs.read(files)
    assert config.targets()["imagenet"] == [config.experiment("cts_imagenet")]
    assert config.experiment("cts_imagenet").gpu == 4
    assert "cts_imagenet" not in configs.read(["config.yaml"]).experiments
