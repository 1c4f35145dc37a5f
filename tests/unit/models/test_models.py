"""Architectures: published sizes, roles of tensors, gradients of every weight, and clear errors."""

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from crbg import methods, models
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, folder
from crbg.gates import attach
from crbg.gates.attach import weights
from crbg.measure.accuracy import accuracy
from crbg.models.initial_weights import RUNNING, tensor_digest
from crbg.runs.artifacts import rebuild
from crbg.runs.execute import execute
from crbg.runs.open_test_set import evaluate
from crbg.runs.setup import Workspace, initial_model, training_loader
from crbg.ticket import Ticket

COLOUR, GREY = (3, 32, 32), (1, 28, 28)
SMALL_VIT = {"patch_size": 7, "depth": 2, "embed_dim": 48, "num_heads": 3}
SMALL_SWIN = {"patch_size": 2, "window_size": 7, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}
SMALL_CONV = {"width": 0.125, "norm": "batch"}
WITH_BATCH_NORM = Spec("digits", "conv2", "edge_popup", 0.5, epochs=3, batch=64, limit=640, model_args=SMALL_CONV)


def count(model, dims=(2, 4)):
    return sum(w.numel() for w in weights(model).values() if w.ndim in dims)


@pytest.mark.parametrize(
    ("name", "options", "everything", "convolutions"),
    [
        ("conv2", {}, 4_300_992, 38_592),
        ("conv4", {}, 2_425_024, 259_776),
        ("conv6", {}, 2_261_184, 1_144_512),
        ("conv8", {}, 5_275_840, 4_683_456),
        ("resnet20", {}, 291_376, 290_736),
        ("resnet20", {"shortcut": 1}, 270_896, 270_256),
        ("vgg16", {}, 14_715_584, 14_710_464),
    ],
)
def test_published_numbers_of_weights(name, options, everything, convolutions):
    model = models.build(name, COLOUR, 10, **options)
    assert count(model) == everything
    assert count(model, (4,)) == convolutions
    assert sum(p.numel() for p in model.parameters()) == everything, (
        "no tensor but the gated ones has anything to learn"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv2", {"width": 0.25}),
        ("conv4", {"norm": "batch", "width": 0.25}),
        ("conv6", {"width": 0.25}),
        ("conv8", {"norm": "batch", "width": 0.25}),
        ("resnet20", {}),
        ("vgg11", {"width": 0.125}),
        ("timm:resnet18", {"stem": "cifar"}),
        ("timm:vit_tiny_patch16_224", SMALL_VIT),
        ("timm:swin_tiny_patch4_window7_224", SMALL_SWIN),
    ],
)
def test_every_network_is_alive_and_every_tensor_has_a_role(name, options):
    """With random weights, every gate receives a gradient, including those of the head."""
    model, roles = models.initial(name, GREY, 10, "kaiming_normal", 1.0, 0, **options)
    assert set(roles) == set(model.state_dict()) | {n for n, _ in model.named_buffers()}
    assert {n for n, r in roles.items() if r == "gated"} == set(weights(model))
    assert all(
        r == ("recalibrated" if n.rsplit(".", 1)[-1] in RUNNING else "frozen") for n, r in roles.items() if r != "gated"
    )
    x = torch.randn(8, *GREY, generator=torch.Generator().manual_seed(0))
    out = model(x)
    assert out.shape == (8, 10)
    nn.functional.cross_entropy(out, torch.arange(8)).backward()
    for n, w in weights(model).items():
        assert float(w.grad.abs().max()) > 0, n


def test_the_small_stem_keeps_the_resolution():
    seen = {}
    for stem in ("imagenet", "cifar"):
        model = models.build("timm:resnet18", COLOUR, 10, stem=stem)
        model.layer1.register_forward_pre_hook(lambda _, args, stem=stem: seen.__setitem__(stem, args[0].shape[-1]))
        model(torch.zeros(2, *COLOUR))
    assert seen == {"imagenet": 8, "cifar": 32}


def test_convolutions_have_no_gain_that_could_learn():
    for name in ("resnet20", "vgg11", "conv2"):
        model = models.build(name, COLOUR, 10, **({"norm": "batch"} if name == "conv2" else {}))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        assert norms
        assert all(not m.affine and m.track_running_stats for m in norms)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("conv8", (3, 15, 15), {}, "cannot take images of shape .3, 15, 15.: it halves them 4 times"),
        ("conv4", COLOUR, {"norm": "layer"}, "model_args.norm: unknown normalisation 'layer'"),
        ("conv4", COLOUR, {"width": 0.001}, "every layer needs at least one unit"),
        ("vgg16", (3, 8, 8), {}, "vgg16 with width 1.0 cannot take images of shape .3, 8, 8."),
        ("resnet20", COLOUR, {"shortcut": 2}, "must be 1 or 3, not 2"),
        ("resnet20", COLOUR, {"depth": 2}, "does not take these model_args"),
        ("resnet21", COLOUR, {}, "unknown model 'resnet21'"),
        ("timm:resnt50", COLOUR, {}, "did you mean 'resnet50'"),
        (
            "timm:vit_tiny_patch16_224",
            COLOUR,
            {"patch_size": 5},
            r"patches of \(5, 5\) pixels do not divide images of \(32, 32\)",
        ),
        ("timm:xcit_nano_12_p16_224", (3, 40, 40), {}, "should divide image dimensions evenly"),
        (
            "timm:inception_v3",
            COLOUR,
            {},
            r"'inception_v3' cannot take images of shape \(3, 32, 32\) .* it expects \(3, 299, 299\): set `size`",
        ),
        ("timm:vit_tiny_patch16_224", COLOUR, {"stem": "cifar"}, "has no conv1 and maxpool"),
        ("timm:resnet18", COLOUR, {"stem": "small"}, "unknown stem 'small'"),
        ("timm:resnet18", COLOUR, {"in_chans": 1}, "leave out in_chans .set from the data"),
        ("timm:resnet18", COLOUR, {"pretrained": True}, "use `init: imagenet` for pretrained ones"),
    ],
)
def test_what_cannot_be_built_says_why(name, shape, options, message):
    with pytest.raises(CrbgError, match=message):
        models.build(name, shape, 10, **options)


def test_a_model_without_gateable_weights_is_refused():
    with pytest.raises(CrbgError, match="Sequential has no weight that can be gated"):
        attach.attach(nn.Sequential(nn.Flatten(), nn.LayerNorm(784)), lambda n, w: None)


# --- ImageNet weights ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Write weight files of networks with 1000 classes, in the format of timm's hub; return these networks."""
    torch.manual_seed(3)
    source = {n: timm.create_model(n) for n in ("resnet18", "test_resnet", "vit_tiny_patch16_224")}
    for n, model in source.items():
        save_file(model.state_dict(), tmp_path / f"{n}.safetensors")
    monkeypatch.setenv("CRBG_WEIGHTS", str(tmp_path))
    return source


def test_imagenet_weights_are_taken_and_only_head_and_stem_are_drawn(hub):
    there = hub["resnet18"].state_dict()
    for stem, drawn in (("imagenet", {"fc.weight", "fc.bias"}), ("cifar", {"conv1.weight", "fc.weight", "fc.bias"})):
        a, roles = models.initial("timm:resnet18", COLOUR, 10, "imagenet", 1.0, 0, stem=stem)
        b, _ = models.initial("timm:resnet18", COLOUR, 10, "imagenet", 1.0, 1, stem=stem)
        assert {n for n, t in a.state_dict().items() if t.shape != there[n].shape or not t.equal(there[n])} == drawn
        assert {n for n, t in a.state_dict().items() if not t.equal(b.state_dict()[n])} == drawn - {"fc.bias"}
        assert roles["conv1.weight"] == roles["fc.weight"] == "gated"
        assert roles["bn1.weight"] == "frozen"


def test_weights_that_cannot_be_downloaded_are_asked_for_once(monkeypatch):
    from crbg.models import timm as networks

    asked, real = [], timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            raise OSError("no route to the hub")
        return real(name, pretrained=False, **options)

    monkeypatch.delenv("CRBG_WEIGHTS", raising=False)
    monkeypatch.setattr(networks, "_absent", {})
    monkeypatch.setattr(timm, "create_model", offline)
    for _ in range(2):
        with pytest.raises(
            CrbgError, match=r"'test_resnet' are not on this machine and could not be downloaded \(OSError: no route"
        ):
            networks.pretrained("timm:test_resnet", COLOUR, 10)
    assert asked == ["test_resnet"]
    # `no_such` is not an argument of this network.
    with pytest.raises(CrbgError, match=r"timm cannot build 'resnet18' for .* with \{'no_such': 1\}"):
        networks.pretrained("timm:resnet18", COLOUR, 10, no_such=1)


def test_a_vit_takes_its_blocks_whatever_its_patches(hub):
    model, _ = models.initial("timm:vit_tiny_patch16_224", COLOUR, 10, "imagenet", 1.0, 0, patch_size=4)
    there, here = hub["vit_tiny_patch16_224"].state_dict(), model.state_dict()
    assert here["patch_embed.proj.weight"].shape[-2:] == (4, 4)
    assert all(here[n].equal(t) for n, t in there.items() if n.startswith("blocks."))


@pytest.mark.long
def test_a_run_from_imagenet_weights_keeps_them_and_its_ticket_rebuilds(hub, tmp_path):
    spec = Spec("digits", "timm:test_resnet", "random", 0.5, init="imagenet", epochs=0, batch=64)
    bench = Workspace(tmp_path / "results")
    record = execute(spec, 0, bench)
    assert record.roles["gated"]
    assert "trained" not in record.roles
    other = execute(spec, 1, bench)
    assert record.digests.initial != other.digests.initial, "the head is drawn from the seed"
    ticket = Ticket.load(next((tmp_path / "results").rglob("seed0/ticket.safetensors")))
    network, _ = initial_model(spec, load("digits"), 0)
    assert ticket.initial == tensor_digest(network.state_dict())
    kept = weights(ticket.model())
    assert all(kept[n].equal(w * ticket.mask[n]) for n, w in weights(network).items())


def test_a_rebuilt_network_with_batch_norm_is_as_accurate_as_its_record_says(tmp_path):
    spec = WITH_BATCH_NORM
    bench = Workspace(tmp_path)
    reading = execute(spec, 0, bench).validation.readings["binary"]
    network = rebuild(folder(tmp_path, spec, 0))
    assert accuracy(network, bench.data("digits").validation.batches()) == pytest.approx(reading.value)


def test_missing_and_damaged_weight_files_are_named(hub, tmp_path):
    def start(name):
        return models.initial(name, COLOUR, 10, "imagenet", 1.0, 0)

    with pytest.raises(CrbgError, match=r"no file .*resnet34\.safetensors with ImageNet weights of 'resnet34'"):
        start("timm:resnet34")
    (tmp_path / "resnet34.safetensors").write_bytes(b"not weights")
    with pytest.raises(CrbgError, match=r"resnet34\.safetensors does not contain weights of 'resnet34'"):
        start("timm:resnet34")
    (tmp_path / "resnet50.safetensors").write_bytes((tmp_path / "resnet18.safetensors").read_bytes())
    with pytest.raises(CrbgError, match=r"resnet50\.safetensors does not contain weights of 'resnet50'"):
        start("timm:resnet50")
    with pytest.raises(CrbgError, match="no ImageNet weights for 'resnet20'"):
        start("resnet20")


def test_only_the_normalisation_is_trained_where_asked(tmp_path):
    bench = Workspace(tmp_path)
    vit = Spec(
        "digits",
        "timm:vit_tiny_patch16_224",
        "dense",
        init="kaiming_normal",
        epochs=1,
        batch=64,
        limit=128,
        model_args=SMALL_VIT,
    )
    record = execute(dataclasses.replace(vit, options={"part": "norm"}), 0, bench)
    trained = record.roles["trained"]
    assert len(trained) == 2 * (2 * 2 + 1), "gain and shift of two norms in each of two blocks, and of the last one"
    assert all("norm" in n for n in trained)
    with pytest.raises(CrbgError, match="needs normalisation layers with gains or shifts"):
        execute(Spec("digits", "resnet20", "dense", epochs=1, batch=64, options={"part": "norm"}), 0, bench)
    with pytest.raises(CrbgError, match="part = 'head' is unknown"):
        execute(dataclasses.replace(vit, options={"part": "head"}), 0, bench)


@pytest.mark.long
def test_a_ticket_is_read_with_the_statistics_of_its_search_too(tmp_path):
    spec = WITH_BATCH_NORM
    bench = Workspace(tmp_path, selected=None)
    reading = execute(spec, 0, bench).validation.readings["binary"]
    data = bench.data("digits")
    model, _ = initial_model(spec, data, 0)
    task = methods.SearchTask(training_loader(spec, data, 0), 0.5, 3, 0, torch.nn.functional.cross_entropy)
    # The search leaves its batch norm statistics in the model.
    found = methods.get("edge_popup").find(model, task, spec.resolved())
    grown = {n: m * 2.0**0.5 for n, m in found.mask.items()}  # weights scaled by sqrt(1/k), as during the search
    assert accuracy(model, data.validation.batches(), grown) == pytest.approx(reading.with_search_statistics)
    assert (
        accuracy(model, data.validation.batches(), grown) > accuracy(model, data.validation.batches(), found.mask) + 1
    )
    again = evaluate(spec, 0, bench).test.readings["binary"]
    assert accuracy(model, data.test.batches(), grown) == pytest.approx(again.with_search_statistics)
