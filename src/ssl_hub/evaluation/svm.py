"""Linear SVMs on frozen features, one a class, as on VOC07 (arXiv 1905.01235)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..printing import name_some
from .base import Evaluator, LabelledFeatures, Metric
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


@dataclass(frozen=True)
class SVMEvaluator(Evaluator):
    """Logs [`svm_mean_average_precision`] of SVMs trained on the training set.

    Args:
        costs: to choose from; by default the published ones.
    """

    type: ClassVar[str] = "svm"
    metrics: ClassVar[dict[str, Metric]] = {"svm_map": Metric("SVM mAP", percent=True)}
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = True
    takes_several_labels: ClassVar[bool] = True

    costs: Sequence[float] | None = None

    def __post_init__(self):
        _check_options(self)

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        sets = _one_against_all(train, features)
        return {"svm_map": svm_mean_average_precision(*sets, costs=self.costs or COSTS)}


@dataclass(frozen=True)
class LowShotSVMEvaluator(Evaluator):
    """Logs the mean of [`low_shot_mean_average_precision`] over the samples.

    Args:
        num_positives, num_samples, costs, select_on_test, seed: as there; by default the published costs.
    """

    type: ClassVar[str] = "low_shot_svm"
    metrics: ClassVar[dict[str, Metric]] = {"low_shot_svm_map": Metric("low-shot SVM mAP", percent=True)}
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = True
    takes_several_labels: ClassVar[bool] = True

    num_positives: int = 4
    num_samples: int = 5
    costs: Sequence[float] | None = None
    select_on_test: bool = False
    seed: int = 0

    def __post_init__(self):
        _check_options(self)

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        options = asdict(self) | {"costs": self.costs or COSTS}
        return {"low_shot_svm_map": low_shot_mean_average_precision(*_one_against_all(train, features), **options).mean}


def _check_options(evaluator: Evaluator) -> None:
    for name, value in asdict(evaluator).items():
        if name == "costs":
            is_list = isinstance(value, list | tuple) and all(type(cost) in (int, float) for cost in value)
            valid, allowed = (
                value is None or (is_list and len(value) > 0 and min(value) > 0),
                "a list of positive numbers",
            )
        elif name == "select_on_test":
            valid, allowed = isinstance(value, bool), "true or false"
        else:
            least = 0 if name == "seed" else 1
            valid, allowed = type(value) is int and value >= least, f"a whole number of at least {least}"
        if not valid:
            raise ValueError(f"{name}={value!r} of the evaluation {evaluator.type!r} must be {allowed}.")


def _one_against_all(train: LabelledFeatures, test: LabelledFeatures) -> tuple[MultiLabelFeatures, MultiLabelFeatures]:
    """Both sets with a column of targets for each class that has images, of labels `(N,)` or targets `(N, C)`."""
    sides = [train, test]
    if train.labels.ndim == 1:
        num_classes = int(max(side.labels.max() for side in sides)) + 1
        sides = [LabelledFeatures(side.features, one_hot(side.labels, num_classes)) for side in sides]
    shown, tested = ((side.labels == 1).any(dim=0) for side in sides)
    if one_sided := (shown != tested).nonzero().flatten().tolist():
        raise ValueError(
            f"the classes {name_some(one_sided)} have images on one side only: an SVM of a class needs training and test "
            "images that show it; leave its images out"
        )
    train, test = (MultiLabelFeatures(side.features, side.labels[:, shown]) for side in sides)
    return train, test
