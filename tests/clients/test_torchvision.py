"""Detection and segmentation models of torchvision, whose outputs are dicts, also of several feature maps."""

import torch
from networks import randn
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_small
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation import LRASPP

IMAGES = randn(2, 2, 3, 64, 64)


def pyramid(channels):
    """Return the backbone of a detector: a mobile network with a feature pyramid."""
    torch.manual_seed(0)
    body = mobilenet_v3_small(norm_layer=nn.BatchNorm2d).features[:4]
    return BackboneWithFPN(body, {"0": "0", "3": "1"}, [16, 24], channels)


class Tagger(nn.Module):
    """Object presence in an image, from the pooled feature maps of a detection backbone."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = pyramid(16), nn.Linear(3 * 16, 4)

    def forward(self, images):
        maps = self.backbone(images)
        return {"maps": maps, "logits": self.head(torch.cat([m.mean((2, 3)) for m in maps.values()], 1))}


def test_detection_backbone_with_a_feature_pyramid(search_as_a_client):
    labels = torch.arange(2) % 4
    found = search_as_a_client(Tagger(), [(images, labels) for images in IMAGES])
    assert "backbone.fpn.inner_blocks.0.0.weight" in found.mask
    assert "backbone.body.1.block.0.0.weight" in found.mask


def test_detector_that_computes_its_own_losses(search_as_a_client):
    """In training mode, detectors of torchvision take targets and return a dict of losses; in eval mode, boxes."""
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    model = FCOS(pyramid(32), 3, min_size=64, max_size=64, anchor_generator=anchors)
    target = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in range(2)]

    def losses(model, batch):
        found = model(list(batch["images"]), batch["targets"])
        return sum(found.values()) if model.training else (found, batch["targets"])

    def no_loss_in_eval_mode(outputs, targets):
        return torch.stack([found["scores"].sum() for found in outputs]).mean()

    batches = [{"images": images, "targets": target} for images in IMAGES]
    found = search_as_a_client(model, batches, forward=losses, loss=no_loss_in_eval_mode)
    assert "head.regression_head.bbox_reg.weight" in found.mask


def test_segmentation_with_a_dict_of_outputs(search_as_a_client):
    torch.manual_seed(0)
    body = mobilenet_v3_small().features[:7]
    model = LRASPP(IntermediateLayerGetter(body, {"3": "low", "6": "high"}), 24, 40, num_classes=3, inter_channels=8)
    labels = (IMAGES[:, :, 0] > 0).long()

    def pixel_loss(outputs, labels):
        return F.cross_entropy(outputs["out"], labels)

    found = search_as_a_client(model, list(zip(IMAGES, labels, strict=True)), loss=pixel_loss)
    assert "classifier.high_classifier.weight" in found.mask
    assert found.report.ticket.labels == 2 * 64 * 64
