"""The accuracy of a linear classifier that is trained beside a model, on the features of the run's own batches."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..field_types import PositiveFloat, check_fields
from .base import Evaluator, LabelledFeatures, Metric
from .class_scores import topk_accuracy


@dataclass(frozen=True)
class OnlineProbeEvaluator(Evaluator):
    """Logs the top-1 accuracy of a run's online probe, see [`ssl_hub.training.online_probe.OnlineProbe`].

    It costs a forward pass of one view of every training image. The classifier has seen features of a model that was
    still changing, so it reaches less than one that is trained on the finished features.

    Args:
        learning_rate: of SGD, constant over the run.
    """

    type: ClassVar[str] = "online_probe"
    metrics: ClassVar[dict[str, Metric]] = {
        "online_probe_accuracy": Metric("online probe accuracy", percent=True, hub_type="accuracy"),
    }
    needs_labels: ClassVar[bool] = True
    needs_train_features: ClassVar[bool] = False
    input: ClassVar[Literal["features", "views", "scores"]] = "scores"

    learning_rate: PositiveFloat = 1.0

    def __post_init__(self):
        check_fields(self, "the evaluation 'online_probe': ")

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        return {"online_probe_accuracy": topk_accuracy(features.features, features.labels)}
