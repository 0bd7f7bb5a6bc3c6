"""RelativeLoc: Unsupervised Visual Representation Learning by Context Prediction (arXiv 1505.05192).

From the features of an image's central patch and of another one, the network says in which of eight directions it lies.
"""

import torch
from torch import nn

from ...distributed import check_batch_for_batchnorm
from ...lifecycle import ParameterRule
from ...modeling_outputs import RelativeLocationOutput, SSLLossOutput
from ...modeling_utils import SSLForImageClassification, SSLModel, check_floats
from ...modules.backbones import backbone_hidden_size, build_backbone
from ...modules.heads import ClassifierHead
from ...modules.losses import classification_loss, to_float32
from .configuration_relativeloc import RelativeLocConfig

# The grid is numbered column by column. A direction is its patch's place among the others.
GRID = 3
CENTER = 4
NUM_DIRECTIONS = 8


def cut_patches(images: torch.Tensor) -> torch.Tensor:
    """Cuts images `(B, C, H, W)` into the nine patches `(B, 9, C, h, w)`, the middle three quarters of each cell.

    So there are gaps between them, as in training.
    """
    cell = [side // GRID for side in images.shape[-2:]]
    margin = [side // 8 for side in cell]
    patches = []
    for column in range(GRID):
        for row in range(GRID):
            down, right = row * cell[0] + margin[0], column * cell[1] + margin[1]
            patches.append(images[..., down : down + cell[0] - 2 * margin[0], right : right + cell[1] - 2 * margin[1]])
    return torch.stack(patches, dim=1)


class RelativeLocNeck(nn.Module):
    """Takes the features of both patches of a pair, one after the other: linear layer, BatchNorm, ReLU, dropout."""

    def __init__(self, input_size: int, output_size: int, dropout: float):
        super().__init__()
        self.fc = nn.Linear(input_size, output_size)
        self.fc.weight_std = 0.01  # read by SSLModel._init_weights
        self.bn = nn.BatchNorm1d(output_size, momentum=0.003)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.bn(self.fc(features)).relu())


class RelativeLocModel(SSLModel):
    """RelativeLoc (arXiv 1505.05192): `backbone`, `neck` for pairs of patches, `head` a classifier of directions."""

    config_class = RelativeLocConfig
    parameter_rules = (ParameterRule(r"^(neck|head)\.", weight_decay_scale=5.0),)

    def __init__(self, config: RelativeLocConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.neck = RelativeLocNeck(2 * backbone_hidden_size(self.backbone), config.projection_size, config.dropout)
        self.head = ClassifierHead(config.projection_size, NUM_DIRECTIONS, weight_std=0.005)
        self.post_init()

    def loss(self, pixel_values: torch.Tensor) -> SSLLossOutput:
        """`mode="loss"`: the cross entropy of the directions.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 9, num_channels, height, width)`):
                Patches of each image, of a grid of 3 x 3 that is numbered column by column: a view of the kind
                `patches`.
        """
        self.check_patches(pixel_values)
        check_batch_for_batchnorm(self, pixel_values)
        labels = torch.arange(NUM_DIRECTIONS, device=pixel_values.device).repeat(len(pixel_values))
        loss, accuracy = classification_loss(self._logits(pixel_values), labels)
        return SSLLossOutput(loss=loss, losses={"cross_entropy": loss.detach(), "accuracy": accuracy})

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor) -> RelativeLocationOutput:
        """`mode="predict"`: in which direction of the central patch each other patch lies.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 9, num_channels, height, width)`, or of shape
                `(batch_size, num_channels, height, width)`):
                Patches as for the loss, or whole images, which are cut into a grid with gaps.
        """
        check_floats(pixel_values)
        if pixel_values.ndim != 5:
            self.check_pixel_values(pixel_values)
            if min(pixel_values.shape[-2:]) < GRID:
                height, width = pixel_values.shape[-2:]
                raise ValueError(
                    f"images of {height} x {width} pixels are smaller than the grid of {GRID} x {GRID} patches: take "
                    "larger ones"
                )
            pixel_values = cut_patches(pixel_values)
        self.check_patches(pixel_values)
        probabilities = to_float32(self._logits(pixel_values)).softmax(dim=1).unflatten(0, (-1, NUM_DIRECTIONS))
        return RelativeLocationOutput(direction=probabilities.argmax(dim=2), probabilities=probabilities)

    def _logits(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits `(8 * batch_size, 8)`, the eight pairs of an image in neighbouring rows."""
        others = torch.cat([patches[:, :CENTER], patches[:, CENTER + 1 :]], dim=1)  # an index would come from the host
        return self.compare(others.flatten(0, 1), patches[:, CENTER])

    def compare(self, others: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        """Logits `(M, 8)` of the directions in which patches `(M, C, h, w)` lie from their centres.

        Args:
            centers: `(M, C, h, w)`, or `(M / n, C, h, w)` if n neighbours each share one: repeated or not, BatchNorm
                normalises them alike.
        """
        others, centers = (self.extract_features(patches).pooler_output for patches in (others, centers))
        centers = centers.repeat_interleave(len(others) // len(centers), dim=0)
        return self.head(self.neck(torch.cat([others, centers], dim=1)))

    def check_patches(self, pixel_values: torch.Tensor) -> None:
        check_floats(pixel_values)
        channels, count = self.config.num_channels, GRID**2
        if pixel_values.ndim != 5 or pixel_values.shape[1:3] != (count, channels):
            raise ValueError(
                f"RelativeLoc compares {count} patches of each image: pixel_values must have the shape (batch_size, "
                f"{count}, {channels}, height, width), got {tuple(pixel_values.shape)}. In a recipe, the view is "
                "{kind: patches, grid: 3}."
            )


class RelativeLocForImageClassification(SSLForImageClassification):
    """RelativeLoc's backbone with a linear classifier on its pooled features."""

    config_class = RelativeLocConfig
