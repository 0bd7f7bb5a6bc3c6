"""Heads that several algorithms share."""

from torch import nn


class PredictorHead(nn.Module):
    """Holds the `predictor`, which only the student has: it predicts one view's projection from another's."""

    def __init__(self, predictor: nn.Module):
        super().__init__()
        self.predictor = predictor

    def forward(self, projections):
        return self.predictor(projections)
