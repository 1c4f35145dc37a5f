"""Small models of timm: one of each family that has a model with few parameters, untrained, on small random images."""

import pytest
import timm
import torch
from networks import randn
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

# A small model of each family (module of timm) that has one with up to 15 million parameters, by the smallest image
# size that it takes.
SIZES = {
    32: """
        cait_xxs24_224 coat_tiny convit_tiny cpubone_nano cs3darknet_focus_s cspnext_tiny
        deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformerv2_s0
        efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224
        fasternet_t0 fastvit_t8 gcvit_xxtiny ghostnet_050 gmlp_ti16_224 hardcorenas_b hgnetv2_b0 iformer_t
        inception_next_atto lcnetv2_small legacy_seresnet18 levit_128 lowformer_b0 mobilenetv3_small_050
        mobilevit_xxs pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repghostnet_050 repvit_m1 resnest14d
        resnetv2_18 rexnet_100 shvit_s1 skresnet18 starnet_s050 swiftformer_xs test_byobnet test_coatnet
        test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos
        visformer_tiny vit_tiny_r_s16_p8_224 xcit_nano_12_p8_224
    """,
    64: """
        csatv2 hrnet_w18_small
    """,
    224: """
        efficientformer_l1 tiny_vit_5m_224
    """,
    240: """
        crossvit_tiny_240
    """,
    256: """
        halonet_h1
    """,
}
MODELS = {name: size for size, names in SIZES.items() for name in names.split()}
ORDINARY = ("test_convnext", "test_efficientnet", "test_vit")
CASES = [pytest.param(n, marks=() if n in ORDINARY else pytest.mark.clients) for n in MODELS]


def built(name, size):
    """Return a model with three classes, built for images of this size if it takes images of one size only."""
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, num_classes=3, img_size=size)
    except TypeError:  # a convolutional network takes any size
        model = timm.create_model(name, num_classes=3)
    for layer in model.modules():  # timm sets the heads of some models to 0, which stops the gradient
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.1)
    return model


def loss(outputs, labels):
    """Return the mean over all heads: models with a distillation token have two in training mode."""
    return torch.stack([F.cross_entropy(t, labels) for t in tree_leaves(outputs)]).mean()


@pytest.mark.parametrize("name", CASES)
def test_two_steps_in_a_model_of_timm(name, search_as_a_client):
    size = MODELS[name]
    images, labels = randn(2, 2, 3, size, size), torch.tensor([0, 2])
    found = search_as_a_client(built(name, size), [(x, labels) for x in images], loss=loss)
    assert len(found.mask) > 3


def test_the_models_are_of_different_families():
    families = {timm.models._registry._model_to_module[name] for name in MODELS}
    assert len(families) == len(MODELS) >= 60
