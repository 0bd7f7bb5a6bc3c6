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
