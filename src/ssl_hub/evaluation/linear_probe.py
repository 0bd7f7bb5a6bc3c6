"""A quick linear probe on features that were extracted once."""

from typing import ClassVar

from torch import Tensor

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

    check_features("train", train_features, train_labels)
    check_features("test", test_features, test_labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train_features.float().cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test_features.float().cpu().numpy(), test_labels.cpu().numpy()))


class LinearProbeEvaluator(Evaluator):
    """Logs [`linear_probe_accuracy`] of a probe trained on the training set."""

    type: ClassVar[str] = "linear_probe"
    metrics: ClassVar[dict[str, Metric]] = {
        "linear_probe_accuracy": Metric("linear probe accuracy", percent=True, hub_type="accuracy"),
    }
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = True

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        accuracy = linear_probe_accuracy(train.features, train.labels, features.features, features.labels)
        return {"linear_probe_accuracy": accuracy}
