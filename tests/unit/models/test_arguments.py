"""Names and arguments of models are checked by parsing source code, without importing torch or timm."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

from crbg import models
from crbg.models import _arguments


def said(name, law="uniform", **arguments):
    return "; ".join(models.problems(name, arguments, law))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("timm:resnet999", {}, "timm has no model 'resnet999': did you mean 'resnet"),
        ("timm:resnet50", {"stam": "cifar"}, "model 'timm:resnet50' has no argument 'stam': did you mean 'stem'?"),
        ("timm:vit_tiny_patch16_224", {"patch_sise": 4}, "did you mean 'patch_size'?"),
        ("timm:resnet50", {"num_classes": 3}, "model_args.num_classes is set from the data"),
        (
            "conv4",
            {"nrom": "batch"},
            "model 'conv4' has no argument 'nrom': did you mean 'norm'? choose from: norm, width",
        ),
        ("lenet-16", {"width": 2}, "model 'lenet-16' has no argument 'width': choose from: activation"),
        ("lenett", {}, "unknown model 'lenett'"),
    ],
)
def test_wrong_names_and_arguments_are_named(name, arguments, words):
    assert words in said(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm:resnet50", {"stem": "cifar"}),
        ("timm:resnet50.a1_in1k", {}),
        ("timm:resnet18", {"block_args": {}, "drop_path_rate": 0.1}),
        ("timm:vit_tiny_patch16_224", {"patch_size": 7, "depth": 2, "embed_dim": 48, "num_heads": 3}),
        (
            "timm:swin_tiny_patch4_window7_224",
            {"patch_size": 4, "window_size": 7, "depths": [1], "drop_path_rate": 0.0},
        ),
        ("timm:deit_tiny_distilled_patch16_224", {"patch_size": 4}),
        ("timm:vit_base_patch16_224_in21k", {}),
        ("resnet20", {"width": 0.5, "affine": True, "shortcut": 1}),
    ],
)
def test_right_names_and_arguments_pass(name, arguments):
    assert said(name, **arguments) == ""


def test_imagenet_weights_are_for_networks_of_timm():
    assert said("timm:resnet50", "imagenet") == ""
    assert "there are no ImageNet weights for 'conv4'" in said("conv4", "imagenet")


def test_without_timm_its_names_are_left_to_the_run(monkeypatch):
    monkeypatch.setattr(_arguments, "timm_models", dict)
    assert said("timm:resnet999", stam=1) == ""


@pytest.mark.long
def test_every_model_of_timm_is_found_without_importing_it():
    code = (
        "import sys; from crbg.models import _arguments; names = set(_arguments.timm_models()); "
        "assert not {'torch', 'timm'} & set(sys.modules); import timm; print(sorted(set(timm.list_models()) - names))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "name", ["lenet-0", "lenet-10-00", "gcn-0", "gat-0x8", "gat-8x0", "gpt-2x0", "tcn-0x4", "gru-0"]
)
def test_a_layer_of_width_0_is_found_without_building_the_network(name):
    assert said(name) == f"model {name!r} has a layer of width 0; every width must be at least 1"


@pytest.mark.parametrize("name", ["lenet-10", "lenet-300-100", "gat-10x10", "timm:resnet50.a1_in1k"])
def test_zeros_inside_a_width_are_no_fault(name):
    assert said(name) == ""
