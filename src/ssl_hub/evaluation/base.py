"""What an evaluation protocol is: an `Evaluator` with its metrics."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """How a number of `metrics.jsonl` is shown in logs, model cards and curves.

    Args:
        title: its name in words.
        percent: whether values from 0 to 1 are shown as percentages.
        higher_is_better: which way it should go, unless there is a `best_value`.
        hub_type: the Hub's name of the metric, such as "accuracy"; with it the metric is one of the results in a model
            card's metadata.
        best_value: what is best, where values above and below it are worse.
    """

    title: str
    percent: bool = False
    higher_is_better: bool = True
    hub_type: str | None = None
    best_value: float | None = None

    @property
    def shown_title(self) -> str:
        """The title, with an arrow that says what is better."""
        if self.best_value is not None:
            return f"{self.title} → {self.best_value:g}"
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

    def format(self, value: float) -> str:
        return f"{value:.2%}" if self.percent else f"{value:.4g}"

    def goodness(self, value: float) -> float:
        """A number that is the higher, the better the value."""
        if self.best_value is not None:
            return -abs(value - self.best_value)
        return value if self.higher_is_better else -value


class LabelledFeatures(NamedTuple):
    """Features `(N, D)` of the images that could be read, and their labels `(N,)`, None where there are none.

    Those of the evaluation set are on the device where the work is done; those of the training set, which may be larger
    than its memory, and the labels are on the CPU.
    For an evaluator of another kind of input the features are that, see `Evaluator.input`.
    Where an image may show several classes, the labels are targets `(N, C)`: 1 for a class that it shows, else 0.
    """

    features: Tensor
    labels: Tensor | None


# By type and by name; a protocol enters both when its class is defined. `METRICS` is in the order of the types, so that
# no order of imports shows in logs, cards and curves.
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
    # What `evaluate` gets of the evaluation set: features `(N, D)`; features `(N, V, D)` of V views of each of N images,
    # the evaluator's `num_views` and `num_images`; or the class scores `(N, C)` that a run's online probe gives.
    input: ClassVar[Literal["features", "views", "scores"]] = "features"
    # Whether the labels may be targets, of images that show several classes.
    takes_several_labels: ClassVar[bool] = False
    # Whether the processes share the work of `evaluate`, which each of them calls with the same features.
    shares_work: ClassVar[bool] = False

    @property
    def needs_train_labels(self) -> bool:
        """Whether something that is trained on the training images and their labels is evaluated."""
        return self.needs_labels and (self.needs_train_features or self.input == "scores")

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
        METRICS.clear()
        METRICS.update({name: each.metrics[name] for _, each in sorted(EVALUATORS.items()) for name in each.metrics})

    def evaluate(self, features: LabelledFeatures, train: LabelledFeatures | None) -> dict[str, float]:
        """Computes the values of `metrics`.

        Args:
            features: of the evaluation set, or what `input` says instead; with labels if `needs_labels`.
            train: of the training set, if `needs_train_features`; with labels if `needs_labels`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement evaluate()")
