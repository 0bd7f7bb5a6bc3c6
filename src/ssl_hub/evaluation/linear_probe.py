"""Linear probes on features that were extracted once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..field_types import PositiveInt, check_fields
from .base import Evaluator, LabelledFeatures, Metric
from .features import check_features


def linear_probe_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Top-1 accuracy, from 0 to 1, of a logistic regression on standardised frozen features.

    A quick look at how linearly separable the classes are. It is not the linear evaluation that papers publish: theirs
    trains a linear layer with SGD or LARS for many epochs on randomly augmented images, so its numbers differ.

    Args:
        train_features: `(N, D)`.
        train_labels: `(N,)`, class indices, of at least two classes.
        test_features: `(M, D)`.
        test_labels: `(M,)`.

    Raises:
        ValueError: sizes that do not fit, an empty set, features that are not finite, or a single class.
    """
    # Not above: scikit-learn takes a second to import, and whoever knows the evaluations by name imports this file.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check_sets(train_features, train_labels, test_features, test_labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train_features.float().cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test_features.float().cpu().numpy(), test_labels.cpu().numpy()))


@dataclass(frozen=True)
class LinearProbeSweep:
    """What [`sweep_linear_probes`] found.

    Args:
        learning_rate: the one that was chosen.
        validation_accuracies: by learning rate, on the held-out part of the training set.
        test_accuracy: of the probe with that learning rate, trained on the whole training set.
        predictions: its class indices `(M,)` on the test set.
    """

    learning_rate: float
    validation_accuracies: dict[float, float]
    test_accuracy: float
    predictions: Tensor


def sweep_linear_probes(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    learning_rates: Sequence[float],
    epochs: int = 100,
    batch_size: int = 256,
    held_out: float = 0.2,
    seed: int = 0,
) -> LinearProbeSweep:
    """Trains linear classifiers with many learning rates at once on standardised features, and tests the best one.

    The best is the one with the highest accuracy on a share of the training set that is held out, of each class alike;
    among equals the one with the lowest loss. It is trained once more on the whole training set, and is the only one that
    sees the test set. SGD with momentum 0.9 and a cosine schedule, as in the published linear evaluations, but on
    features without augmentation.

    Args:
        train_features: `(N, D)`, on the device where the work is done.
        train_labels: `(N,)`, class indices.
        test_features: `(M, D)`.
        test_labels: `(M,)`, class indices.
        held_out: share of the training set.
        seed: of the held-out part and the order of the batches.

    Raises:
        ValueError: sizes that do not fit, features that are not finite, a single class, or nothing left to hold out.
    """
    _check_sets(train_features, train_labels, test_features, test_labels)
    if not learning_rates or min(learning_rates) <= 0 or epochs < 1 or batch_size < 1 or not 0 < held_out < 1:
        raise ValueError(
            "learning_rates must be positive, epochs and batch_size at least 1 and held_out between 0 and 1; got "
            f"{learning_rates}, {epochs}, {batch_size} and {held_out}."
        )
    device = train_features.device
    # In double precision: equal features would otherwise have a deviation of rounding error instead of 0.
    std, mean = torch.std_mean(train_features.double(), dim=0, correction=0)
    scale = torch.where(std > 1e-6 * mean.abs(), 1 / std, 0.0)
    train, test = (((each.to(device).double() - mean) * scale).float() for each in (train_features, test_features))
    train_labels, test_labels = train_labels.to(device), test_labels.to(device)
    num_classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    settings = (num_classes, epochs, batch_size, seed)

    kept, validation = _hold_out(train_labels.cpu(), held_out, seed)
    kept, validation = kept.to(device), validation.to(device)
    scores = _scores(train[kept], train_labels[kept], train[validation], learning_rates, *settings)
    accuracies = [_accuracy(each, train_labels[validation]) for each in scores]
    losses = [torch.nn.functional.cross_entropy(each, train_labels[validation]).item() for each in scores]
    best = learning_rates[max(range(len(scores)), key=lambda i: (accuracies[i], -losses[i]))]
    scores = _scores(train, train_labels, test, [best], *settings)[0]
    return LinearProbeSweep(
        learning_rate=best,
        validation_accuracies=dict(zip(learning_rates, accuracies, strict=True)),
        test_accuracy=_accuracy(scores, test_labels),
        predictions=scores.argmax(dim=1).cpu(),
    )


def _check_sets(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    check_features("train", train_features, train_labels)
    check_features("test", test_features, test_labels)
    if len(train_labels.unique()) < 2:
        raise ValueError(
            f"All {len(train_labels)} training images are of one class: a linear probe needs at least two, so add others or "
            "leave it out."
        )


def _hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to hold out: of each class the share, and at least one row if it has two."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out = []
    for label in labels.unique():
        rows = order[labels[order] == label]
        held_out.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    held_out = torch.cat(held_out)
    if len(held_out) == 0:
        raise ValueError("Every class has a single training image, so that none can be held out to choose with.")
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held_out] = False
    return mask.nonzero().flatten(), held_out


@torch.no_grad()
def _scores(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    learning_rates: Sequence[float],
    num_classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Trains a linear classifier a learning rate from zero; their scores `(L, M, num_classes)` of the test features."""
    count, (num_rows, width) = len(learning_rates), train.shape
    weight = train.new_zeros(count, width + 1, num_classes)  # the last row is the bias
    momentum = torch.zeros_like(weight)
    rates = train.new_tensor(learning_rates)[:, None, None]
    train, test = (torch.cat([each, each.new_ones(len(each), 1)], dim=1) for each in (train, test))
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(num_rows / batch_size)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(num_rows, generator=generator).to(train.device).split(batch_size):
            batch = train[rows]
            # The gradient of the cross-entropy by the scores: the probabilities, less 1 for the right class.
            residuals = (batch @ weight).softmax(dim=2)
            residuals[:, torch.arange(len(rows), device=train.device), labels[rows]] -= 1
            momentum.mul_(0.9).add_(batch.T @ residuals, alpha=1 / len(rows))
            weight -= rates * (0.5 * (1 + math.cos(math.pi * step / steps))) * momentum
            step += 1
    return test @ weight


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows `(M, C)` whose largest entry is the label's; 0 for a probe that has diverged."""
    return (scores.argmax(dim=1) == labels).float().mean().item() if scores.isfinite().all() else 0.0


@dataclass(frozen=True)
class LinearProbeEvaluator(Evaluator):
    """Logs [`linear_probe_accuracy`] of a probe trained on the training set.

    Args:
        max_samples: images of the training set that it is trained on, a random sample; None for all of them.
    """

    type: ClassVar[str] = "linear_probe"
    metrics: ClassVar[dict[str, Metric]] = {
        "linear_probe_accuracy": Metric("linear probe accuracy", percent=True, hub_type="accuracy"),
    }
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = True

    max_samples: PositiveInt | None = None

    def __post_init__(self):
        check_fields(self, "the evaluation 'linear_probe': ")

    @property
    def max_train_samples(self) -> int | None:
        return self.max_samples

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        accuracy = linear_probe_accuracy(train.features, train.labels, features.features, features.labels)
        return {"linear_probe_accuracy": accuracy}
