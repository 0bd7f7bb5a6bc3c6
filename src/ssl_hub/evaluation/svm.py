"""Linear SVMs on frozen features, one a class, as on VOC07 (arXiv 1905.01235)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .class_scores import Interpolation, average_precision
from .features import check_features

# The costs of the published protocol.
COSTS = (*(0.5**power for power in range(19, 3, -1)), 1.0, 10.0, 100.0)
_NEGATIVES_A_POSITIVE = 19  # in the low-shot protocol
_NUM_FOLDS = 3


class MultiLabelFeatures(NamedTuple):
    """Features `(N, D)` and targets `(N, C)`: 1 where a class is there, 0 where it is not, -1 where that is unclear."""

    features: Tensor
    targets: Tensor


class LowShotResult(NamedTuple):
    """Mean average precision of each sample `(num_samples,)`, from 0 to 1, and the cost that was chosen."""

    values: Tensor
    cost: float

    @property
    def mean(self) -> float:
        return self.values.mean().item()

    @property
    def std(self) -> float:
        return self.values.std(correction=0).item()


def svm_mean_average_precision(
    train: MultiLabelFeatures,
    test: MultiLabelFeatures,
    *,
    costs: Sequence[float] = COSTS,
    interpolation: Interpolation = "all",
) -> float:
    """Mean over the classes of the average precision of a linear SVM, from 0 to 1.

    The cost of each class is the one with the highest average precision in three-fold cross-validation on the training
    set. Features are divided by their L2 norm. In training an unclear image counts as one without the class, in testing
    it does not count.

    Args:
        costs: to choose from.
        interpolation: of the average precision on the test set, see [`average_precision`].

    Raises:
        ValueError: shapes that do not fit, features that are not finite, a class that all images of a side show or
            none, or fewer than three training images with or without it to choose a cost by.
    """
    _check_sets(train, test, costs)
    train_features, test_features = _scaled(train.features), _scaled(test.features)
    values = []
    for index in range(train.targets.shape[1]):
        shown = train.targets[:, index].cpu().numpy() == 1
        cost = _cross_validated_cost(train_features, shown, costs, index) if len(costs) > 1 else costs[0]
        decide = _svm(cost).fit(train_features, shown).decision_function
        values.append(_precision(decide(test_features), test.targets[:, index], interpolation))
    return float(np.mean(values))


def low_shot_mean_average_precision(
    train: MultiLabelFeatures,
    test: MultiLabelFeatures,
    *,
    num_positives: int,
    num_samples: int = 5,
    costs: Sequence[float] = COSTS,
    interpolation: Interpolation = "all",
    select_on_test: bool = False,
    seed: int = 0,
) -> LowShotResult:
    """As [`svm_mean_average_precision`] with few images that show a class, and 19 others for each of them.

    Args:
        num_positives: images that show a class.
        num_samples: independent draws of the images.
        select_on_test: choose the cost whose mean over classes and samples is best on the test set, as the published
            numbers do, which flatters them; by default the training images that were not drawn choose it.

    Raises:
        ValueError: as there, or too few images of a class.
    """
    _check_sets(train, test, costs)
    if num_positives < 1 or num_samples < 1:
        raise ValueError(f"num_positives and num_samples must be at least 1; got {num_positives} and {num_samples}.")
    train_features, test_features = _scaled(train.features), _scaled(test.features)
    num_classes = train.targets.shape[1]
    kept = 0 if select_on_test else 1  # at least, to choose the cost by
    tested, validated = np.zeros((2, len(costs), num_samples, num_classes))
    for sample in range(num_samples):
        generator = np.random.default_rng([seed, sample])
        for index in range(num_classes):
            targets = train.targets[:, index].cpu()
            positives, negatives = (generator.permutation(np.flatnonzero(targets.numpy() == value)) for value in (1, 0))
            if len(positives) < num_positives + kept or len(negatives) < 1 + kept:
                raise ValueError(
                    f"Class {index} has {len(positives)} training images that show it and {len(negatives)} that do not: "
                    f"num_positives={num_positives} needs {num_positives + kept} and {1 + kept}."
                )
            num_negatives = min(num_positives * _NEGATIVES_A_POSITIVE, len(negatives) - kept)
            drawn = np.concatenate([positives[:num_positives], negatives[:num_negatives]])
            rest = np.concatenate([positives[num_positives:], negatives[num_negatives:]])
            for number, cost in enumerate(costs):
                decide = _svm(cost).fit(train_features[drawn], targets.numpy()[drawn] == 1).decision_function
                tested[number, sample, index] = _precision(decide(test_features), test.targets[:, index], interpolation)
                if not select_on_test:
                    validated[number, sample, index] = _precision(
                        decide(train_features[rest]), targets[rest], interpolation
                    )
    best = (tested if select_on_test else validated).mean(axis=(1, 2)).argmax()
    return LowShotResult(torch.from_numpy(tested[best].mean(axis=1)), costs[best])


def _check_sets(train: MultiLabelFeatures, test: MultiLabelFeatures, costs: Sequence[float]) -> None:
    if not costs or min(costs) <= 0:
        raise ValueError(f"The costs must be one or more positive numbers; got {list(costs)}.")
    num_classes = train.targets.shape[-1]
    for name, (features, targets) in (("train", train), ("test", test)):
        check_features(name, features)
        if targets.shape != (len(features), num_classes):
            raise ValueError(
                f"The {name} targets need a row a feature and {num_classes} classes, got the shape {tuple(targets.shape)}."
            )
        if not ((targets == 1) | (targets == 0) | (targets == -1)).all():
            raise ValueError(f"The {name} targets must be 1, 0 or -1; got {targets.unique().tolist()[:5]}.")
        for index in range(num_classes):
            if not (targets[:, index] == 1).any() or not (targets[:, index] == 0).any():
                raise ValueError(f"Class {index} needs {name} images that show it and {name} images that do not.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"Train features have {train.features.shape[1]} dimensions, test features {test.features.shape[1]}: extract "
            "both with the same model."
        )


def _scaled(features: Tensor) -> np.ndarray:
    features = features.cpu().double()
    return (features / (features.norm(dim=1, keepdim=True) + 1e-5)).numpy()


def _svm(cost: float):
    from sklearn.svm import LinearSVC  # it takes a while to import

    return LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=True, max_iter=2000, random_state=0)


def _cross_validated_cost(features: np.ndarray, shown: np.ndarray, costs: Sequence[float], index: int) -> float:
    from sklearn.model_selection import cross_val_score  # it takes a while to import

    if min(shown.sum(), (~shown).sum()) < _NUM_FOLDS:
        raise ValueError(
            f"Class {index} has {shown.sum()} of {len(shown)} training images: to choose its cost by cross-validation it "
            f"needs {_NUM_FOLDS} that show it and {_NUM_FOLDS} that do not; give a single cost, or more images."
        )
    scores = [
        cross_val_score(_svm(cost), features, shown, cv=_NUM_FOLDS, scoring="average_precision").mean()
        for cost in costs
    ]
    return costs[int(np.argmax(scores))]


def _precision(scores: np.ndarray, targets: Tensor, interpolation: Interpolation) -> float:
    clear = targets.cpu() >= 0
    return average_precision(torch.from_numpy(scores)[clear], targets.cpu()[clear], interpolation)
