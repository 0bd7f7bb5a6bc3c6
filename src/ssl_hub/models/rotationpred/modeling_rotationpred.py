"""RotationPred: Unsupervised Representation Learning by Predicting Image Rotations (arXiv 1803.07728).

Every image is turned by 0, 90, 180 and 270 degrees, and the network says by how much.
"""

import torch

from ...modeling_outputs import RotationOutput, SSLLossOutput
from ...modeling_utils import SSLForImageClassification, SSLModel
from ...modules.backbones import backbone_hidden_size, build_backbone
from ...modules.heads import ClassifierHead
from ...modules.losses import classification_loss, to_float32
from .configuration_rotationpred import RotationPredConfig

NUM_ROTATIONS = 4


def rotate(images: torch.Tensor) -> torch.Tensor:
    """Turns square images `(B, C, S, S)` clockwise by 0, 90, 180 and 270 degrees.

    Returns:
        `torch.Tensor`: `(4 * B, C, S, S)`, the four of an image in neighbouring rows.
    """
    turned = [torch.rot90(images, -quarters, dims=(2, 3)) for quarters in range(NUM_ROTATIONS)]
    return torch.stack(turned, dim=1).flatten(0, 1)


class RotationPredModel(SSLModel):
    """RotationPred (arXiv 1803.07728): `backbone`, and a linear classifier of the four rotations as `head`."""

    config_class = RotationPredConfig

    def __init__(self, config: RotationPredConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.head = ClassifierHead(backbone_hidden_size(self.backbone), NUM_ROTATIONS)
        self.post_init()

    def loss(self, pixel_values: torch.Tensor) -> SSLLossOutput:
        """`mode="loss"`: the cross entropy of the rotations.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, size, size)`):
                Images as they are; they are turned here, all four rotations of an image in one batch.
        """
        self.check_pixel_values(pixel_values)
        height, width = pixel_values.shape[-2:]
        if height != width:
            raise ValueError(
                f"RotationPred turns square images by quarters; got {height} x {width} pixels: crop them to a square"
            )
        labels = torch.arange(NUM_ROTATIONS, device=pixel_values.device).repeat(len(pixel_values))
        loss, accuracy = classification_loss(self._logits(rotate(pixel_values)), labels)
        return SSLLossOutput(loss=loss, losses={"cross_entropy": loss.detach(), "accuracy": accuracy})

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor) -> RotationOutput:
        """`mode="predict"`: by which angle each image `(batch_size, num_channels, height, width)` has been turned."""
        probabilities = to_float32(self._logits(pixel_values)).softmax(dim=1)
        return RotationOutput(angle=probabilities.argmax(dim=1) * 90, probabilities=probabilities)

    def _logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.extract_features(pixel_values).pooler_output)


class RotationPredForImageClassification(SSLForImageClassification):
    """RotationPred's backbone with a linear classifier on its pooled features."""

    config_class = RotationPredConfig
