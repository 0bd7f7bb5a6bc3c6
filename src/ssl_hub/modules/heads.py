"""Heads that several algorithms share."""

import torch
from torch import nn


class ClassifierHead(nn.Module):
    """Holds a linear `classifier`, which starts from N(0, `weight_std`^2) and zero."""

    def __init__(self, hidden_size: int, num_classes: int, weight_std: float = 0.01):
        super().__init__()
        self.classifier = nn.Linear(hidden_size, num_classes)
        self.classifier.weight_std = weight_std  # read by SSLModel._init_weights

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(features)


class PredictorHead(nn.Module):
    """Holds the `predictor`, which only the student has: it predicts one view's projection from another's."""

    def __init__(self, predictor: nn.Module):
        super().__init__()
        self.predictor = predictor

    def forward(self, projections):
        return self.predictor(projections)


# Kernel, stride and padding of the average pooling of the stem and the four stages of a ResNet for images of 224
# pixels, and the side of what it makes.
_STAGE_POOLING = ((10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0))
_STAGE_SIDES = (12, 6, 4, 3, 2)


class StageClassifier(nn.Module):
    """A linear classifier on the feature map of each of several stages (arXiv 1905.01235).

    A map is averaged to 12, 6, 4, 3 or 2 positions a side, from the stem to the last stage, then come BatchNorm without
    weight and bias, `norms`, and the linear layer, of `classifiers`.

    Args:
        channels: of the maps, by stage; 0 is the stem, 4 the last stage.
        pooling: `"specified"` for the published kernels, which are made for images of about 224 pixels, `"adaptive"`
            for maps of any size.
    """

    def __init__(self, channels: dict[int, int], num_labels: int, pooling: str):
        super().__init__()
        self.stages = list(channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in channels.values())
        self.classifiers = nn.ModuleList(
            nn.Linear(width * _STAGE_SIDES[stage] ** 2, num_labels) for stage, width in channels.items()
        )
        self.pooling = pooling

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Returns the logits `(B, num_stages, num_labels)` of maps `(B, D, H, W)`, one a stage."""
        pooled = [self._pool(stage, each) for stage, each in zip(self.stages, maps, strict=True)]
        logits = [
            classifier(norm(each).flatten(1))
            for each, norm, classifier in zip(pooled, self.norms, self.classifiers, strict=True)
        ]
        return torch.stack(logits, dim=1)

    def _pool(self, stage: int, feature_map: torch.Tensor) -> torch.Tensor:
        side = _STAGE_SIDES[stage]
        if self.pooling == "adaptive":
            return nn.functional.adaptive_avg_pool2d(feature_map, side)
        kernel, stride, padding = _STAGE_POOLING[stage]
        sides = [(size + 2 * padding - kernel) // stride + 1 for size in feature_map.shape[2:]]
        if sides != [side, side]:
            height, width = feature_map.shape[2:]
            raise ValueError(
                f"the published pooling of stage {stage} is for images of about 224 pixels, and its map is {height} x "
                f"{width} here: set classifier_stage_pooling to 'adaptive'"
            )
        return nn.functional.avg_pool2d(feature_map, kernel, stride, padding)
