"""How many directions features use, and how well they tell images apart, without labels."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..field_types import AtLeastTwo, check_fields
from .base import Evaluator, LabelledFeatures, Metric
from .features import check_features, double

_EPSILON = 1e-7
_MIN_DIRECTIONS = 3  # of which a decay can be told
_FIRST_RANK, _LAST_RANK = 4, 100  # of the eigenvalues that alpha-ReQ's authors fit
# Entries of a matrix of similarities that are held at a time.
_MAX_ENTRIES = 2**24
_ROWS_AT_A_TIME = 4096


def alignment(first: Tensor, second: Tensor, alpha: float = 2.0) -> float:
    """How far apart two views of an image are on the unit sphere (arXiv 2005.10242): 0 if they coincide.

    Args:
        first, second: features `(N, D)` of two views; row i of both is image i.
        alpha: power of the distances that are averaged.

    Raises:
        ValueError: features that are not finite, or of different shapes.
    """
    check_features("first", first)
    check_features("second", second)
    if first.shape != second.shape:
        raise ValueError(f"Two views need features of one shape, got {tuple(first.shape)} and {tuple(second.shape)}.")
    distances = (normalize(double(first)) - normalize(double(second))).norm(dim=1)
    return distances.pow(alpha).mean().item()


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """How evenly features cover the unit sphere (arXiv 2005.10242); the lower, the more evenly, and 0 in a single point.

    The logarithm of the mean Gaussian potential `exp(-t * distance^2)` over all pairs of different images.

    Args:
        features: `(N, D)` of two images or more.

    Raises:
        ValueError: features that are not finite, or of a single image.
    """
    check_features("given", features)
    if len(features) < 2:
        raise ValueError("Uniformity is about pairs of images: give the features of two or more.")
    unit, total = normalize(double(features)).to(torch.promote_types(features.dtype, torch.float32)), 0.0
    for rows in unit.split(max(1, _MAX_ENTRIES // len(unit))):
        total += (rows @ unit.T).sub_(1).clamp_(max=0).mul_(2 * t).exp_().sum(dtype=torch.double).item()
    # Without those of an image with itself, which are 1.
    return math.log(max((total - len(unit)) / (len(unit) * (len(unit) - 1)), 1e-300))


def alpha_req(features: Tensor, first_rank: int = _FIRST_RANK, last_rank: int = _LAST_RANK) -> float:
    """The exponent of the decay of the eigenvalues of the features' covariance, alpha-ReQ (arXiv 2202.05808).

    The n-th eigenvalue falls as `n ** -alpha`; about 1 is best, above it few directions dominate. The line through the
    logarithms is fitted with weights 1 / n. The paper names no ranks; the defaults are those of the authors' code.

    Args:
        features: `(N, D)`.
        first_rank, last_rank: eigenvalues that count, from 1. Where there are fewer than twice `first_rank`, all do.

    Raises:
        ValueError: features that are not finite, or with fewer than three directions.
    """
    eigenvalues = _spectrum(features)
    if len(eigenvalues) < _MIN_DIRECTIONS:
        raise ValueError(
            f"The features vary in {len(eigenvalues)} directions only, and a decay needs {_MIN_DIRECTIONS}: give more images, "
            "or look for a collapse."
        )
    return _decay(eigenvalues, first_rank, last_rank)


def _decay(eigenvalues: Tensor, first_rank: int = _FIRST_RANK, last_rank: int = _LAST_RANK) -> float:
    first = first_rank if len(eigenvalues) >= 2 * first_rank else 1
    ranks = torch.arange(first, min(last_rank, len(eigenvalues)) + 1, dtype=torch.double)
    y, x, weights = eigenvalues[first - 1 : first - 1 + len(ranks)].cpu().log(), ranks.log(), 1 / ranks
    x, y = x - (weights * x).sum() / weights.sum(), y - (weights * y).sum() / weights.sum()
    return -((weights * x * y).sum() / (weights * x * x).sum()).item()


def _spectrum(features: Tensor) -> Tensor:
    """The eigenvalues of the features' scatter, in falling order, without those that are zero but for rounding."""
    check_features("given", features)
    eigenvalues = scatter_eigenvalues(features, centred=True)
    total = sum(double(part).square().sum() for part in features.split(_ROWS_AT_A_TIME))
    return eigenvalues[eigenvalues > 1e-12 * total.clamp(min=1e-300)]


def scatter_eigenvalues(features: Tensor, *, centred: bool) -> Tensor:
    """The eigenvalues `(min(N, D),)` of the features' scatter, in falling order: squares of their singular values.

    In double precision, as squares take twice the digits, and on the features' device.

    Args:
        features: `(N, D)`; so that no more is held than a part of them and a D x D matrix.
        centred: whether the mean of the features is subtracted.
    """
    parts = features.split(_ROWS_AT_A_TIME)
    mean = sum(double(part).sum(dim=0) for part in parts) / len(features) if centred else 0.0
    # Of the smaller of the two products, whose eigenvalues other than zero are the same.
    if len(features) > features.shape[1]:
        product = sum(part.T @ part for part in (double(part) - mean for part in parts))
    else:
        product = (double(features) - mean) @ (double(features) - mean).T
    return torch.linalg.eigvalsh(product).flip(0)


def lidar(features: Tensor, delta: float = 1e-4) -> float:
    """The effective rank of what tells images apart from views of one image, LiDAR (arXiv 2312.04000).

    Args:
        features: `(N, V, D)` of N images in V views each; the paper takes 1,000 images in 50 views.
        delta: what is added to the diagonal of the scatter within images.

    Returns:
        1 when all images lie on one line, min(N - 1, D) when no direction stands out.

    Raises:
        ValueError: features that are not finite, a single image or a single view.
    """
    if features.ndim != 3 or features.shape[0] < 2 or features.shape[1] < 2:
        raise ValueError(
            f"LiDAR needs features (images, views, dimensions) of two or more images and views, got {tuple(features.shape)}."
        )
    check_features("given", features.flatten(0, 1))
    features = double(features)
    means = features.mean(dim=1)
    between = means - means.mean(dim=0)
    within = (features - means[:, None]).flatten(0, 1)
    between = between.T @ between / len(means)
    within = within.T @ within / len(within) + delta * torch.eye(features.shape[2]).to(within)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt() @ vectors.T
    p = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp(min=0)
    p = p / p.sum().clamp(min=1e-300) + _EPSILON
    return torch.exp(-(p * p.log()).sum()).item()


class SpectrumEvaluator(Evaluator):
    """Logs [`uniformity`] of two images or more, and [`alpha_req`] of features that do not collapse."""

    type: ClassVar[str] = "spectrum"
    metrics: ClassVar[dict[str, Metric]] = {
        "uniformity": Metric("uniformity (the lower, the more evenly spread)", higher_is_better=False),
        "alpha_req": Metric("alpha-ReQ (decay of eigenvalues)", best_value=1.0),
    }
    needs_labels: ClassVar[bool] = False
    needs_train_features: ClassVar[bool] = False

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        # A collapse is no reason to end a run.
        metrics = {"uniformity": uniformity(features.features)} if len(features.features) > 1 else {}
        eigenvalues = _spectrum(features.features)
        if len(eigenvalues) >= _MIN_DIRECTIONS:
            metrics["alpha_req"] = _decay(eigenvalues)
        return metrics


@dataclass(frozen=True)
class ViewsEvaluator(Evaluator):
    """Logs [`lidar`] and [`alignment`] of views of a fixed sample of images, the same views at every evaluation.

    Args:
        num_images: in the sample; LiDAR, an effective rank, is below it.
        num_views: of each image; a forward pass each.
    """

    type: ClassVar[str] = "views"
    metrics: ClassVar[dict[str, Metric]] = {
        "lidar": Metric("LiDAR (effective rank over views)"),
        "alignment": Metric("alignment (squared distance of views)", higher_is_better=False),
    }
    needs_labels: ClassVar[bool] = False
    needs_train_features: ClassVar[bool] = False
    input: ClassVar[Literal["features", "views", "scores"]] = "views"

    num_images: AtLeastTwo = 500
    num_views: AtLeastTwo = 10

    def __post_init__(self):
        check_fields(self, "the evaluation 'views': ")

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        views = features.features
        if len(views) < 2:
            return {}
        pairs = views[:, : views.shape[1] // 2 * 2]
        aligned = alignment(pairs[:, 0::2].flatten(0, 1), pairs[:, 1::2].flatten(0, 1))
        return {"lidar": lidar(views), "alignment": aligned}
