"""What the class scores of images are worth: top-k accuracy and average precision."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .features import check_features

# How average precision interpolates the precision between recalls.
Interpolation = Literal["none", "all", "eleven"]


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """The share of images whose class is among the k with the highest scores; an equal score counts as a higher one.

    Args:
        scores: `(N, C)`.
        labels: `(N,)`, class indices below C.

    Raises:
        ValueError: sizes that do not fit, scores that are not finite, a label or k out of range.
    """
    check_features("score", scores, labels)
    if labels.max() >= scores.shape[1]:
        raise ValueError(f"A label is {labels.max()}, but the scores are of {scores.shape[1]} classes.")
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k} of {scores.shape[1]} classes: choose k from 1 to the number of classes.")
    of_class = scores.gather(1, labels.to(scores.device, torch.long)[:, None])
    return ((scores >= of_class).sum(dim=1) <= k).float().mean().item()


def average_precision(scores: Tensor, targets: Tensor, interpolation: Interpolation = "all") -> float:
    """The area under the curve of precision over recall, of one class.

    Args:
        scores: `(N,)`; the higher, the surer.
        targets: `(N,)`, 1 for an image of the class, 0 for another.
        interpolation: `"none"` as in scikit-learn; `"all"`, the highest precision at this recall or more (VOC since
            2010); `"eleven"`, the mean of that at the recalls 0, 0.1, ..., 1 (VOC07).

    Raises:
        ValueError: no image is of the class, the shapes differ, a score is not finite, or a target neither 0 nor 1.
    """
    if scores.shape != targets.shape or scores.ndim != 1:
        raise ValueError(
            f"Average precision needs a score and a target an image, got the shapes {tuple(scores.shape)} and "
            f"{tuple(targets.shape)}."
        )
    if not scores.isfinite().all():
        raise ValueError("Average precision needs finite scores.")
    if interpolation not in ("none", "all", "eleven"):
        raise ValueError(f"interpolation must be 'none', 'all' or 'eleven'; got {interpolation!r}.")
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError(
            f"The targets of average precision are 1 or 0; got {targets.unique().tolist()[:5]}: leave unclear images out."
        )
    relevant = targets.bool().cpu().numpy()
    if not relevant.any():
        raise ValueError("No image is of the class, so that it has no average precision.")
    from sklearn.metrics import average_precision_score, precision_recall_curve  # it takes a while to import

    scores = scores.double().cpu().numpy()
    if interpolation == "none":
        return float(average_precision_score(relevant, scores))
    precision, recall, _ = precision_recall_curve(relevant, scores)  # recall falls from 1 to 0
    highest = np.maximum.accumulate(precision[:-1])  # without the last point, at recall 0, which no image has
    if interpolation == "all":
        return float(-(np.diff(recall) * highest).sum())
    points = np.linspace(0, 1, 11)
    return float(np.mean([highest[recall[:-1] >= point - 1e-12].max() for point in points]))
