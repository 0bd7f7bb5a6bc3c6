"""Signs of collapse that need no labels."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Evaluator, LabelledFeatures, Metric
from .features import check_features
from .spectrum import scatter_eigenvalues

_RANKME_EPSILON = 1e-7


def embedding_std(features: Tensor) -> float:
    """How far L2-normalised features spread over the sphere, after the collapse check of SimSiam (arXiv 2011.10566).

    The standard deviation of each dimension over the samples, averaged over the dimensions, times sqrt(D).

    Args:
        features: `(N, D)`.

    Returns:
        1 when the features cover the sphere evenly, 0 when all have collapsed to one direction.

    Raises:
        ValueError: features that are not a finite, non-empty `(N, D)`.
    """
    check_features("given", features)
    return (normalize(features.float()).std(dim=0, correction=0).mean() * features.shape[1] ** 0.5).item()


def rankme(features: Tensor) -> float:
    """The effective rank of the features, RankMe (arXiv 2210.02885).

    The exponential of the entropy of the singular values, normalised to sum to one, with the epsilon of the paper.

    Args:
        features: `(N, D)`; the paper takes 25,600 samples, and N below D bounds the result by N.

    Returns:
        About 1 when all features lie on one line, min(N, D) when no direction stands out; 0 when all are zero.

    Raises:
        ValueError: features that are not a finite, non-empty `(N, D)`.
    """
    check_features("given", features)
    singular_values = scatter_eigenvalues(features, centred=False).clamp(min=0).sqrt()
    if singular_values.sum() == 0:
        return 0.0
    p = singular_values / singular_values.sum() + _RANKME_EPSILON
    return torch.exp(-(p * p.log()).sum()).item()


def describe_collapse(metrics: Mapping[str, float]) -> str | None:
    """Says in words that features have collapsed, and the usual causes; None if they have not, or nobody knows.

    Args:
        metrics: by name; what [`LabelFreeEvaluator`] finds counts. The `embedding_std` of healthy models is far above 0.02,
            that of an untrained network is about 0.1.
    """
    if metrics.get("embedding_std", 1.0) >= 0.02:
        return None
    return (
        "all images get nearly the same vector (embedding_std {embedding_std:.4f} of 1, effective rank {rankme:.1f}). Usual "
        "causes: too high a learning rate or too short a warm-up, no weight decay or far too much of it, a batch too small "
        "for BatchNorm, views that show too little of an image, a teacher's momentum that is too low."
    ).format(**metrics)


class LabelFreeEvaluator(Evaluator):
    """Logs [`embedding_std`] and [`rankme`] of two images or more."""

    type: ClassVar[str] = "label_free"
    metrics: ClassVar[dict[str, Metric]] = {
        "embedding_std": Metric("embedding standard deviation (1: well spread, 0: collapsed)"),
        "rankme": Metric("RankMe (effective rank)"),
    }
    needs_labels: ClassVar[bool] = False
    needs_train_features: ClassVar[bool] = False

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        if len(features.features) < 2:  # which have no spread
            return {}
        return {"embedding_std": embedding_std(features.features), "rankme": rankme(features.features)}
