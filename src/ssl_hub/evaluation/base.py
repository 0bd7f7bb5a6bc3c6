"""What an evaluation protocol is: an `Evaluator` with its metrics."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """How a number of `metrics.jsonl` is shown in logs, model cards and curves.

    Args:
        title: its name in words.
        percent: whether values from 0 to 1 are shown as percentages.
        higher_is_better: which way it should go.
        hub_type: the Hub's name of the metric, such as "accuracy"; with it the metric is one of the results in a model
            card's metadata.
    """

    title: str
    percent: bool = False
    higher_is_better: bool = True
    hub_type: str | None = None

    def format(self, value: float) -> str:
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


class LabelledFeatures(NamedTuple):
    """Features `(N, D)` of the images that could be read, and their labels `(N,)`, None where there are none.

    Where an image may show several classes, the labels are targets `(N, C)`: 1 for a class that it shows, else 0.
    """

    features: Tensor
    labels: Tensor | None


# By type and by name; a protocol enters both when its class is defined.
EVALUATORS: dict[str, type["Evaluator"]] = {}
METRICS: dict[str, Metric] = {}


@dataclass(frozen=True)
class Evaluator:
    """Base of the evaluation protocols.

    A subclass with options is a frozen dataclass: its fields are what a recipe may set, and `__post_init__` raises a
    `ValueError` for one that is out of range.
    """

    # What a recipe calls the protocol.
    type: ClassVar[str]
    # What `evaluate` returns, by the name that logs have. No two protocols have a name in common.
    metrics: ClassVar[dict[str, Metric]]
    needs_labels: ClassVar[bool]
    needs_train_features: ClassVar[bool]
    # Whether the labels may be targets, of images that show several classes.
    takes_several_labels: ClassVar[bool] = False

    @property
    def max_train_samples(self) -> int | None:
        """How many of the training images `evaluate` gets at most, a random sample; None for all of them."""
        return None

    def __init_subclass__(cls):
        taken = cls.metrics.keys() & METRICS.keys()
        if cls.type in EVALUATORS or taken:
            raise ValueError(
                f"{cls.__name__}: there is an evaluator with type {cls.type!r} or metrics {sorted(taken)} already; choose "
                "other names"
            )
        EVALUATORS[cls.type] = cls
        METRICS.update(cls.metrics)

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        """Computes the values of `metrics`.

        Args:
            features: of the evaluation set; with labels if `needs_labels`.
            train: of the training set, if `needs_train_features`; with labels if `needs_labels`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement evaluate()")

    def warning(self, metrics: dict[str, float]) -> str | None:
        """What a user should be told about values that `evaluate` returned, if there is anything."""
        return None
