"""Linear SVMs on frozen features, one a class, as on VOC07 (arXiv 1905.01235), and average precision."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .features import check_features

# The costs of the published protocol.
COSTS = (*(0.5**power for power in range(19, 3, -1)), 1.0, 10.0, 100.0)
_NEGATIVES_A_POSITIVE = 19  # in the low-shot protocol


class MultiLabelFeatures(NamedTuple):
    """Features `(N, D)` and targets `(N, C)`: 1 where a class is there, 0 where it is not, -1 where that is unclear."""

    features: Tensor
    targets: Tensor


def average_precision(
    scores: Tensor, targets: Tensor, interpolation: Literal["none", "all", "eleven"] = "all"
) -> float:
    """The area under the curve of precision over recall, of one class.

    Args:
        scores: `(N,)`; the higher, the surer.
        targets: `(N,)`, 1 for an image of the class, 0 for another.
        interpolation: `"none"` as in scikit-learn; `"all"`, the highest precision at this recall or more (VOC since
            2010); `"eleven"`, the mean of that at the recalls 0, 0.1, ..., 1 (VOC07).

    Raises:
        ValueError: no image is of the class, the shapes differ, or a score is not finite.
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


def svm_mean_average_precision(
    train: MultiLabelFeatures,
    test: MultiLabelFeatures,
    *,
    costs: Sequence[float] = COSTS,
    interpolation: Literal["none", "all", "eleven"] = "all",
) -> float:
    """Mean over the classes of the average precision of a linear SVM, whose cost three-fold cross-validation chooses.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, a class that all images of a side show or none.
    """
    _check_sets(train, test)
    values = []
    for index in range(train.targets.shape[1]):
        x, y = _training_part(train, index)
        cost = max(costs, key=lambda cost: _cross_validated(x, y, cost, interpolation)) if len(costs) > 1 else costs[0]
        values.append(_test_precision(x, y, cost, test, index, interpolation))
    return float(np.mean(values))


def low_shot_mean_average_precision(
    train: MultiLabelFeatures,
    test: MultiLabelFeatures,
    *,
    num_positives: int,
    num_samples: int = 5,
    costs: Sequence[float] = COSTS,
    interpolation: Literal["none", "all", "eleven"] = "all",
    select_on_test: bool = False,
    seed: int = 0,
) -> tuple[float, float]:
    """As [`svm_mean_average_precision`] with few images of a class, and 19 of other classes for each of them.

    Args:
        num_positives: images of a class.
        num_samples: independent draws of the images.
        select_on_test: choose the cost whose mean on the test set is best, as the published numbers do, which flatters
            them; by default the images that were not drawn choose it.

    Returns:
        Mean and standard deviation over the samples.

    Raises:
        ValueError: as there, or too few images of a class.
    """
    _check_sets(train, test)
    num_classes = train.targets.shape[1]
    tested, chosen = np.zeros((2, len(costs), num_samples, num_classes))
    for sample in range(num_samples):
        generator = np.random.default_rng([seed, sample])
        for index in range(num_classes):
            positives, negatives = (np.flatnonzero(train.targets[:, index].numpy() == value) for value in (1, 0))
            if len(positives) < num_positives + (not select_on_test):
                raise ValueError(
                    f"class {index} has {len(positives)} training images, too few for {num_positives} of them"
                    + ("" if select_on_test else " and one to choose the cost")
                )
            count = min(num_positives * _NEGATIVES_A_POSITIVE, len(negatives) - (not select_on_test))
            rows = np.concatenate(
                [generator.permutation(positives)[:num_positives], generator.permutation(negatives)[:count]]
            )
            x, y = _scaled(train.features[rows]), train.targets[rows, index].numpy() == 1
            left = np.setdiff1d(np.concatenate([positives, negatives]), rows)
            rest = MultiLabelFeatures(train.features[left], train.targets[left])
            for number, cost in enumerate(costs):
                tested[number, sample, index] = _test_precision(x, y, cost, test, index, interpolation)
                if not select_on_test:
                    chosen[number, sample, index] = _test_precision(x, y, cost, rest, index, interpolation)
    best = (tested if select_on_test else chosen).mean(axis=(1, 2)).argmax()
    means = tested[best].mean(axis=1)
    return float(means.mean()), float(means.std())


def _check_sets(train: MultiLabelFeatures, test: MultiLabelFeatures) -> None:
    num_classes = train.targets.shape[-1]
    for name, (features, targets) in (("train", train), ("test", test)):
        check_features(name, features)
        if targets.shape != (len(features), num_classes):
            raise ValueError(
                f"The {name} targets need a row a feature and {num_classes} classes, got the shape {tuple(targets.shape)}."
            )
        for index in range(num_classes):
            if not (targets[:, index] == 1).any() or not (targets[:, index] == 0).any():
                raise ValueError(f"Class {index} needs {name} images that show it and {name} images that do not.")


def _training_part(train: MultiLabelFeatures, index: int) -> tuple[np.ndarray, np.ndarray]:
    # In the published protocol an unclear image is a negative in training, and dropped in testing.
    return _scaled(train.features), train.targets[:, index].numpy() == 1


def _scaled(features: Tensor) -> np.ndarray:
    features = features.double()
    return (features / (features.norm(dim=1, keepdim=True) + 1e-5)).numpy()


def _svm(cost: float):
    from sklearn.svm import LinearSVC  # it takes a while to import

    return LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=True, max_iter=2000, random_state=0)


def _cross_validated(x: np.ndarray, y: np.ndarray, cost: float, interpolation: str) -> float:
    from sklearn.model_selection import StratifiedKFold

    if min(y.sum(), (~y).sum()) < 3:
        raise ValueError("Three-fold cross-validation of the cost needs three images of a class, and three others.")
    folds = StratifiedKFold(3).split(x, y)
    scores = [(_svm(cost).fit(x[a], y[a]).decision_function(x[b]), y[b]) for a, b in folds]
    return float(
        np.mean([average_precision(torch.from_numpy(s), torch.from_numpy(t), interpolation) for s, t in scores])
    )


def _test_precision(
    x: np.ndarray, y: np.ndarray, cost: float, test: MultiLabelFeatures, index: int, interpolation: str
) -> float:
    clear = test.targets[:, index] >= 0
    scores = _svm(cost).fit(x, y).decision_function(_scaled(test.features[clear]))
    return average_precision(torch.from_numpy(scores), test.targets[clear, index], interpolation)
