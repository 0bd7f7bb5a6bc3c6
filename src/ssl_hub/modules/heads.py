"""Heads that several algorithms share."""

from torch import nn


class PredictorHead(nn.Module):
    """Holds the `predictor`, which only the student has: it predicts one view's projection from another's."""

    def __init__(self, predictor: nn.Module):
        super().__init__()
        self.predictor = predictor

    def forward(self, projections):
        return self.predictor(projections)


class ClassifierHead(nn.Module):
    """Holds a linear `classifier`, which starts from N(0, 0.01) and zero."""

    def __init__(self, hidden_size: int, num_classes: int):
        super().__init__()
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, features):
        return self.classifier(features)
